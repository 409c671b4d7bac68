package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"

	"zimage/internal/testenv"
)

func TestUsersCommands(t *testing.T) {
	t.Parallel()
	i := install(t)
	i.start()
	defer i.stop()
	const address, reason = "ann@example.org", "asked for it on the telephone"
	id := strings.TrimSpace(i.must("violet tractors at dawn\n", "user", "create", "--email", address))
	key := strings.TrimSpace(i.must("", "key", "create", "--email", address))
	submit := func() (int, string) {
		t.Helper()
		req, err := http.NewRequest(http.MethodPost, i.base()+"/v1/generations", strings.NewReader(`{"prompt":"p","width":64,"height":64}`)) //nolint:noctx // a test
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		req.Header.Set("Content-Type", "application/json")
		res, err := browser.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		text := make([]byte, 4096)
		n, _ := res.Body.Read(text)
		return res.StatusCode, string(text[:n])
	}
	state := func() string {
		t.Helper()
		for line := range strings.Lines(i.must("", "user", "list")) {
			if strings.HasPrefix(line, id) {
				return line
			}
		}
		t.Fatal("the list has no such user")
		return ""
	}
	if list := i.must("", "user", "list"); strings.Contains(list, "ann") || !strings.Contains(list, id) {
		t.Errorf("the list should have ids and no addresses:\n%s", list)
	}
	for _, command := range []string{"user disable", "user enable", "user close", "user reset-2fa", "key list", "key revoke key_none"} {
		for _, without := range [][]string{{}, {"--reason", "short"}} {
			if _, errs, code := i.run("", slices.Concat(strings.Fields(command), []string{"--email", address}, without)...); code == 0 || !strings.Contains(errs, "reason") || strings.Contains(errs, address) {
				t.Errorf("%s %v: exit %d, %q", command, without, code, errs)
			}
		}
	}
	testenv.Eventually(t, 10*time.Second, func() bool { return i.mailed("An account was made for you", "13 or older") })
	if _, errs, code := i.run("", "key", "create", "--email", address, "--scope", "admin"); code == 0 || !strings.Contains(errs, "for staff") {
		t.Errorf("the scope admin for a user: exit %d, %q", code, errs)
	}
	// The bare command stays, and tells the owner; mails are files here.
	testenv.Eventually(t, 10*time.Second, func() bool { return i.mailed("An API key was made", "at the machine") })
	before := i.must("", "key", "list", "--email", address, "--reason", reason)
	extra := strings.TrimSpace(i.must("", "key", "create", "--email", address, "--name", "of a script", "--reason", reason))
	list := i.must("", "key", "list", "--email", address, "--reason", reason)
	if strings.Contains(before, "of a script") || !strings.Contains(list, "of a script") || strings.Contains(list, extra) {
		t.Errorf("the list of keys:\n%s", list)
	}
	i.must("", "key", "revoke", "--email", address, "--reason", reason, strings.Fields(strings.Split(list, "\n")[1])[0])
	testenv.Eventually(t, 10*time.Second, func() bool { return i.mailed("An API key was revoked", reason) })
	if _, errs, code := i.run("", "user", "disable", "--email", "nobody@example.org", "--reason", reason); code == 0 || strings.Contains(errs, "nobody") {
		t.Errorf("nobody: exit %d, %q", code, errs)
	}
	if code, _ := submit(); code != http.StatusAccepted {
		t.Fatalf("before: %d", code)
	}

	i.must("", "user", "disable", "--email", address, "--reason", reason)
	if code, text := submit(); code != http.StatusForbidden || !strings.Contains(text, "suspended") || !strings.Contains(state(), "suspended") {
		t.Errorf("disabled: %d %s; %s", code, text, state())
	}
	i.must("", "user", "enable", "--email", address, "--reason", reason)
	if code, _ := submit(); code != http.StatusAccepted {
		t.Errorf("enabled again: %d", code)
	}

	if _, errs, code := i.run("", "user", "role", "operator", "--email", address, "--reason", reason); code == 0 || !strings.Contains(errs, "second factor") {
		t.Errorf("a role without a second factor: exit %d, %q", code, errs)
	}
	if _, _, code := i.run("", "user", "role", "king", "--email", address, "--reason", reason); code == 0 {
		t.Error("a role that there is not was given")
	}
	i.withApp(address, "violet tractors at dawn")
	if code, _ := i.signIn(address, "violet tractors at dawn"); code != http.StatusUnauthorized {
		t.Errorf("signed in without the second factor: %d", code)
	}
	i.must("", "user", "reset-2fa", "--email", address, "--reason", reason)
	if code, _ := i.signIn(address, "violet tractors at dawn"); code != http.StatusOK {
		t.Errorf("after the reset: %d", code)
	}
	testenv.Eventually(t, 10*time.Second, func() bool { return i.mailed("How you sign in was changed", "by the operator") })

	i.must("", "user", "close", "--child", "--email", address, "--reason", reason)
	testenv.Eventually(t, 5*time.Second, func() bool {
		code, _ := submit()
		return code == http.StatusUnauthorized
	})
	if !strings.Contains(state(), "closing") {
		t.Errorf("closed: %s", state())
	}
	if _, errs, code := i.run("violet tractors at dawn\n", "user", "create", "--email", address); code == 0 || strings.Contains(errs, address) {
		t.Errorf("the address of a closed account: exit %d, %q", code, errs)
	}
}

// send sends a body in a session, which is nil for none, and decodes the answer.
func (i *installation) send(session *http.Cookie, method, path, body string, into any) (status int, cookie *http.Cookie) {
	i.t.Helper()
	req, err := http.NewRequest(method, i.base()+path, strings.NewReader(body)) //nolint:noctx // a test
	if err != nil {
		i.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if session != nil {
		req.AddCookie(session)
	}
	res, err := browser.Do(req)
	if err != nil {
		i.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if into != nil {
		if err := json.NewDecoder(res.Body).Decode(into); err != nil {
			i.t.Fatal(err)
		}
	}
	for _, c := range res.Cookies() {
		cookie = c
	}
	return res.StatusCode, cookie
}

func (i *installation) signIn(email, password string) (status int, session *http.Cookie) {
	i.t.Helper()
	return i.send(nil, http.MethodPost, "/v1/session", `{"email":"`+email+`","password":"`+password+`"}`, nil)
}

// withApp puts an authenticator app in force.
func (i *installation) withApp(email, password string) {
	i.t.Helper()
	_, session := i.signIn(email, password)
	var begun struct{ Secret string }
	i.send(session, http.MethodPost, "/v1/account/totp", "", &begun)
	code, err := totp.GenerateCode(begun.Secret, time.Now())
	if err != nil {
		i.t.Fatal(err)
	}
	if status, _ := i.send(session, http.MethodPost, "/v1/account/totp/confirm", `{"code":"`+code+`"}`, nil); status != http.StatusOK {
		i.t.Fatalf("the app: %d", status)
	}
}

// mailed reports whether a mail of that subject holds the text.
func (i *installation) mailed(subject, text string) bool {
	i.t.Helper()
	files, err := filepath.Glob(filepath.Join(i.dir, "data", "mail", "*.eml"))
	if err != nil {
		i.t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(file string) bool {
		mail, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(mail), "Subject: "+subject) && strings.Contains(string(mail), text)
	})
}

// Two services on one SQLite file would each requeue what the other runs.
func TestOneServiceOnADatabase(t *testing.T) {
	t.Parallel()
	one, two := install(t), install(t)
	database := "ZIMAGE_DATABASE_URL=sqlite:" + one.dir + "/shared.db"
	one.env, two.env = append(one.env, database), append(two.env, database)
	one.start()
	defer one.stop()
	if _, errs, code := two.run("", "up"); code == 0 || !strings.Contains(errs, "already running") {
		t.Errorf("a second service on the database: exit %d, %q", code, errs)
	}
}
