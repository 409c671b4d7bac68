package app

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"zimage/internal/config"
	"zimage/internal/testenv"
	"zimage/internal/webhook"
)

// What is for development alone is told at every start.
func TestAStartTellsThatWebhooksMayLeadToThisMachine(t *testing.T) {
	t.Parallel()
	for allowed, want := range map[string]bool{"true": true, "false": false} {
		var log bytes.Buffer
		c := settingsOf(t, config.RoleUp, map[string]string{"ZIMAGE_OUTBOUND_LOOPBACK": allowed})
		a, err := Open(t.Context(), c, "up", "test", NewLog(c, &log))
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if got := strings.Contains(log.String(), "level=WARN") && strings.Contains(log.String(), "setting=ZIMAGE_OUTBOUND_LOOPBACK"); got != want {
			t.Errorf("%s: %s", allowed, &log)
		}
	}
}

// The room of webhooks is wired to the one that writes letters.
func TestTheMailOfADisabledWebhookIsSent(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		gone := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) }))
		t.Cleanup(gone.Close)
		data := filepath.Join(t.TempDir(), "data")
		a := open(t, config.RoleUp, map[string]string{"ZIMAGE_DATABASE_URL": url, "ZIMAGE_DATA": data, "ZIMAGE_LISTEN": freePort(t), "ZIMAGE_OUTBOUND_LOOPBACK": "true"})
		a.start(t, config.RoleWorker, config.RoleScheduler)
		ann, err := a.Accounts.CreateUser(t.Context(), "ann@example.org", "correct horse battery")
		if err != nil {
			t.Fatal(err)
		}
		address := gone.URL + "/of-ann"
		e, _, err := a.Webhooks.Create(t.Context(), ann, webhook.Change{URL: &address})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Webhooks.SendTest(t.Context(), ann, e.ID); err != nil {
			t.Fatal(err)
		}
		var letter string
		testenv.Eventually(t, time.Minute, func() bool {
			files, err := filepath.Glob(filepath.Join(data, "mail", "*.eml"))
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), "Subject: A webhook was disabled") {
					letter = string(text)
				}
			}
			return letter != ""
		})
		for _, want := range []string{"ann@example.org", e.ID, "127.0.0.1", "It answered 410"} {
			if !strings.Contains(letter, want) {
				t.Errorf("it lacks %q:\n%s", want, letter)
			}
		}
		if strings.Contains(letter, "of-ann") {
			t.Error("it tells more of the address than its host")
		}
	})
}
