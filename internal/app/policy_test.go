//go:build unix

package app

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"zimage/internal/account"
	"zimage/internal/config"
	"zimage/internal/privacy"
	"zimage/internal/testenv"
)

// served is an installation that runs with a policy, none when it is empty, and
// with somebody's key.
type served struct {
	t    *testing.T
	app  *App
	base string
	key  string
}

func serve(t *testing.T, policy string, settings map[string]string) served {
	t.Helper()
	environ := map[string]string{"ZIMAGE_LISTEN": freePort(t)}
	for name, value := range settings {
		environ[name] = value
	}
	if policy != "" {
		file := filepath.Join(t.TempDir(), "policy.yaml")
		if err := os.WriteFile(file, []byte(policy), 0o600); err != nil {
			t.Fatal(err)
		}
		environ["ZIMAGE_POLICY"] = file
	}
	a := open(t, config.RoleUp, environ)
	a.start(t, config.RoleAPI)
	s := served{t: t, app: a, base: "http://" + environ["ZIMAGE_LISTEN"]}
	owner, err := a.Accounts.CreateUser(t.Context(), "ada@example.org", "correct horse battery")
	if err != nil {
		t.Fatal(err)
	}
	if s.key, _, err = a.Accounts.CreateKey(t.Context(), owner, "test", []string{account.ScopeGenerate, account.ScopeRead}, time.Time{}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s served) do(method, path, body string) (*http.Response, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.base+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if method == http.MethodPost {
		req.Header.Set("Authorization", "Bearer "+s.key)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return res, string(text)
}

// answered is the body of a GET, or of a POST with a body, as JSON.
func (s served) answered(path, body string, into any) {
	s.t.Helper()
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	res, text := s.do(method, path, body)
	if err := json.Unmarshal([]byte(text), into); err != nil || res.StatusCode >= 300 {
		s.t.Fatalf("%s %s: %d %s", method, path, res.StatusCode, text)
	}
}

// One number in one file, and nothing else: the page, the API and what becomes of a
// new prompt follow it.
func TestPromise_P1_OneNumberInOneFileChangesPageAndWindow(t *testing.T) {
	t.Parallel()
	for _, days := range []int{90, 60} {
		t.Run(fmt.Sprint(days), func(t *testing.T) {
			t.Parallel()
			testenv.DatabaseURLs(t, func(t *testing.T, url string) {
				policy := ""
				if days != 90 {
					policy = strings.Replace(string(privacy.Example), "generated_content: 90 days", fmt.Sprintf("generated_content: %d days", days), 1)
				}
				s := serve(t, policy, map[string]string{"ZIMAGE_DATABASE_URL": url})

				res, page := s.do(http.MethodGet, "/privacy", "")
				if want := fmt.Sprintf(`<span id="window-generated-content">%d days</span>`, days); !strings.Contains(page, want) {
					t.Errorf("the page lacks %s", want)
				}
				if kind := res.Header.Get("Content-Type"); kind != "text/html; charset=utf-8" || res.Header.Get("X-Request-ID") == "" || len(res.Cookies()) > 0 {
					t.Errorf("the page comes with %v", res.Header)
				}
				var said struct {
					Version string
					Page    string
					Windows map[string]string
				}
				s.answered("/v1/privacy/policy", "", &said)
				if said.Windows["generated_content"] != fmt.Sprintf("%d days", days) || said.Version != "2026-01-01" || said.Page != s.base+"/privacy" {
					t.Errorf("the API says %+v", said)
				}
				var made struct {
					Request   struct{ RetentionDays int } `json:"request"`
					CreatedAt time.Time                   `json:"created_at"`
					ExpiresAt time.Time                   `json:"expires_at"`
				}
				s.answered("/v1/generations", `{"prompt":"a lighthouse","width":64,"height":64}`, &made)
				if want := made.CreatedAt.AddDate(0, 0, days); !made.ExpiresAt.Equal(want) {
					t.Errorf("a generation of %s expires at %s, want %s", made.CreatedAt, made.ExpiresAt, want)
				}
				if res, text := s.do(http.MethodPost, "/v1/generations", fmt.Sprintf(`{"prompt":"a lighthouse","retention_days":%d}`, days+1)); res.StatusCode != http.StatusBadRequest || !strings.Contains(text, "retention_days") {
					t.Errorf("a day more than the policy allows: %d %s", res.StatusCode, text)
				}
			})
		})
	}
}

// What people agree to is the version of the file.
func TestPromise_C2_AConsentNamesTheVersionOfThePolicy(t *testing.T) {
	t.Parallel()
	s := serve(t, strings.Replace(string(privacy.Example), `version: "2026-01-01"`, "version: v42", 1), nil)
	ctx := t.Context()
	in, err := s.app.Accounts.SignIn(ctx, account.Client{}, account.Credentials{Email: "ada@example.org", Password: "correct horse battery"})
	if err != nil {
		t.Fatal(err)
	}
	ada, err := s.app.Accounts.AuthenticateSession(ctx, in.Token)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.app.Accounts.SetConsent(ctx, ada, "training", true); err != nil {
		t.Fatal(err)
	}
	list, err := s.app.Accounts.Consents(ctx, ada.Subject)
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	for _, c := range list {
		if want := c.Purpose == "training"; c.Granted != want || want && c.PolicyVersion != "v42" {
			t.Errorf("agreed to %+v", c)
		}
	}
}

// What the page tells people to call is there.
func TestPromise_P1_ThePageNamesRoutesThatExist(t *testing.T) {
	t.Parallel()
	s := serve(t, "", nil)
	_, page := s.do(http.MethodGet, "/privacy", "")
	var api struct {
		Paths map[string]map[string]any
	}
	s.answered("/openapi.json", "", &api)
	named := regexp.MustCompile(`<code>([A-Z]+) (/[^<]*)</code>`).FindAllStringSubmatch(page, -1)
	if len(named) < 25 {
		t.Errorf("only %d routes are named", len(named))
	}
	for _, route := range named {
		if api.Paths[route[2]][strings.ToLower(route[1])] == nil {
			t.Errorf("there is no %s %s", route[1], route[2])
		}
	}
	for _, link := range regexp.MustCompile(`href="(/[^"]*)"`).FindAllStringSubmatch(page, -1) {
		if res, _ := s.do(http.MethodGet, link[1], ""); res.StatusCode != http.StatusOK {
			t.Errorf("%s answers %d", link[1], res.StatusCode)
		}
	}
	for _, path := range []string{"/privacy", "/.well-known/security.txt", "/.well-known/gpc.json"} {
		if res, text := s.do(http.MethodHead, path, ""); res.StatusCode != http.StatusOK || text != "" {
			t.Errorf("HEAD %s: %d, %d bytes", path, res.StatusCode, len(text))
		}
		if res, _ := s.do(http.MethodPost, path, ""); res.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: %d", path, res.StatusCode)
		}
	}
	_, file := s.do(http.MethodGet, "/.well-known/security.txt", "")
	_, expires, _ := strings.Cut(file, "Expires: ")
	at, err := time.Parse(time.RFC3339, strings.SplitN(expires, "\n", 2)[0])
	if left := time.Until(at).Hours() / 24; err != nil || left < 179 || left > 181 || !strings.Contains(file, "Canonical: "+s.base+"/") {
		t.Errorf("security.txt, with %v days left (%v):\n%s", left, err, file)
	}
}

// The settings' exceptions, and the engines file's, are what the page and the API
// name.
func TestPromise_X1_TheExceptionsOfTheSettingsStandOnThePage(t *testing.T) {
	t.Parallel()
	engines := filepath.Join(t.TempDir(), "engines.yaml")
	err := os.WriteFile(engines, []byte(`engines:
  - {name: gpu, kind: openai, url: "http://gpu.example:8000", keeps: disk, tls: {exception: a lab}, models: {z: {dialect: vllm-omni}}}
  - {name: near, kind: openai, url: "http://127.0.0.1:8000", keeps: memory, models: {z: {dialect: vllm-omni}}}
models:
  - {id: z, default_steps: 8}
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		settings map[string]string
		hops     []string
		keep     string
	}{
		"none": {nil, nil, "nothing"},
		"some": {map[string]string{"ZIMAGE_TLS_EXCEPTIONS": "smtp,s3", "ZIMAGE_ENGINES": engines}, []string{"s3", "smtp", "engines"}, "disk"},
	} {
		s := serve(t, "", tt.settings)
		var said struct {
			Analytics bool
			Security  struct {
				Exceptions  []struct{ Hop, Words string }
				EnginesKeep string `json:"engines_keep"`
			}
		}
		s.answered("/v1/privacy/policy", "", &said)
		_, page := s.do(http.MethodGet, "/privacy", "")
		if len(said.Security.Exceptions) != len(tt.hops) || said.Security.EnginesKeep != tt.keep || said.Analytics {
			t.Errorf("%s: the API says %+v", name, said)
			continue
		}
		for i, hop := range tt.hops {
			if said.Security.Exceptions[i].Hop != hop || !strings.Contains(page, "<li><strong>"+hop+"</strong>") {
				t.Errorf("%s: %s is not named", name, hop)
			}
		}
		if none := strings.Contains(page, "There is no exception"); none != (len(tt.hops) == 0) {
			t.Errorf("%s: the page says that there is none: %v", name, none)
		}
	}
}

func TestPromise_D1_TheAPIListsTheRegister(t *testing.T) {
	t.Parallel()
	s := serve(t, strings.Replace(string(privacy.Example), "processors: []", `processors:
  - {id: mail, name: Gull Mail Ltd, purpose: Delivers mail., purposes: [account, notice], categories: [mail address], place: Ireland, safeguard: None needed., contract: Agreement 17, contract_date: 2026-02-03}
  - {id: payments, name: Coin Ltd, purpose: Takes payments., purposes: [account], categories: [card], place: Nowhere, safeguard: None.}
`, 1), nil)
	var said struct {
		Processors []map[string]any
		Complaint  string
		Contacts   map[string]string
	}
	s.answered("/v1/privacy/policy", "", &said)
	if len(said.Processors) != 2 {
		t.Fatalf("the API says %v", said.Processors)
	}
	mail, payments := said.Processors[0], said.Processors[1]
	for key, want := range map[string]any{"id": "mail", "on": true, "name": "Gull Mail Ltd", "purpose": "Delivers mail.", "place": "Ireland",
		"safeguard": "None needed.", "contract": "Agreement 17", "contract_date": "2026-02-03"} {
		if mail[key] != want {
			t.Errorf("%s is %v, want %v", key, mail[key], want)
		}
	}
	if list, _ := mail["purposes"].([]any); len(list) != 2 || list[0] != "account" || list[1] != "notice" {
		t.Errorf("the purposes are %v", mail["purposes"])
	}
	if payments["on"] != false || payments["contract"] != nil || payments["contract_date"] != nil {
		t.Errorf("without a contract: %v", payments)
	}
	if said.Complaint != privacy.DefaultPolicy().Complaint() || said.Contacts["data_protection_officer"] != "dpo@example.org" {
		t.Errorf("the API says %+v", said)
	}
}

// unbound is a policy with a company that serves something without a contract.
func unbound(serves string) string {
	return strings.Replace(string(privacy.Example), "processors: []", `processors:
  - {id: gull, name: Gull Ltd, purpose: Serves., purposes: [notice], categories: [mail address], place: Ireland, safeguard: None needed., serves: [`+serves+`]}
`, 1)
}

// A company is given nothing without a contract: no process starts that the settings
// lead to it.
func TestPromise_D7_NoProcessStartsThatLeadsToAProcessorWithoutContract(t *testing.T) {
	t.Parallel()
	engines := filepath.Join(t.TempDir(), "engines.yaml")
	if err := os.WriteFile(engines, fmt.Appendf(nil, oneServer, ""), 0o600); err != nil {
		t.Fatal(err)
	}
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		s3 := map[string]string{"ZIMAGE_S3_ENDPOINT": "127.0.0.1:1", "ZIMAGE_S3_BUCKET": "b", "ZIMAGE_S3_ACCESS_KEY": "a", "ZIMAGE_S3_SECRET_KEY": "s", "ZIMAGE_S3_TLS": "false"}
		for _, tt := range []struct {
			serves, variable string // none: nothing stands in the way
			settings         map[string]string
			opens            bool // with a contract: nobody answers elsewhere
		}{
			{"smtp", "SMTP_URL", map[string]string{"ZIMAGE_SMTP_URL": "smtp://127.0.0.1:1", "ZIMAGE_MAIL_FROM": "zimage@example.org"}, true},
			{"smtp", "", nil, true},
			{"engine", "ENGINES", map[string]string{"ZIMAGE_ENGINES": engines}, true},
			{"engine", "", nil, true},
			{"redis", "REDIS_URL", map[string]string{"ZIMAGE_REDIS_URL": "redis://127.0.0.1:1"}, true},
			{"s3", "S3_ENDPOINT", s3, false},
			{"smtp, redis", "", s3, false},
			{"database", map[bool]string{true: "", false: "DATABASE_URL"}[strings.HasPrefix(url, "sqlite:")], nil, true},
		} {
			settings := map[string]string{"ZIMAGE_DATABASE_URL": url}
			for name, value := range tt.settings {
				settings[name] = value
			}
			start := func(policy string) error {
				settings["ZIMAGE_POLICY"] = filepath.Join(t.TempDir(), "policy.yaml")
				if err := os.WriteFile(settings["ZIMAGE_POLICY"], []byte(policy), 0o600); err != nil {
					t.Fatal(err)
				}
				a, err := Open(t.Context(), settingsOf(t, config.RoleUp, settings), "up", "test", slog.New(slog.DiscardHandler))
				if err == nil {
					err = a.Close()
				}
				return err
			}
			const refusal = "without a contract in the policy"
			err := start(unbound(tt.serves))
			if want := "ZIMAGE_" + tt.variable + ": " + refusal; tt.variable != "" && (err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), ": gull")) {
				t.Errorf("%s, without a contract: %v", tt.serves, err)
			}
			if tt.variable == "" && (err == nil) != tt.opens || tt.variable == "" && err != nil && strings.Contains(err.Error(), refusal) {
				t.Errorf("%s, and nothing leads there: %v", tt.serves, err)
			}
			err = start(strings.Replace(unbound(tt.serves), "serves: [", "contract: Agreement 17, contract_date: 2026-02-03, serves: [", 1))
			if (err == nil) != tt.opens || err != nil && strings.Contains(err.Error(), refusal) {
				t.Errorf("%s, with a contract: %v", tt.serves, err)
			}
		}
	})
}

func TestAWrongPolicyIsRefusedAtStart(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(file, []byte("version: v1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), settingsOf(t, config.RoleUp, map[string]string{"ZIMAGE_POLICY": file}), "up", "test", slog.New(slog.DiscardHandler))
	if err == nil || !strings.HasPrefix(err.Error(), "ZIMAGE_POLICY: policy file:") || !strings.Contains(err.Error(), "contacts: is missing") {
		t.Errorf("a start says: %v", err)
	}
}
