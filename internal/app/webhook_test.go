package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"zimage/internal/config"
	"zimage/internal/engine"
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

// unwilling is an engine that refuses one prompt, and holds every other until it is
// canceled.
type unwilling struct{ began chan struct{} }

const refusedPrompt = "what it does not draw"

func (unwilling) Check(context.Context) error { return nil }

func (u unwilling) Generate(ctx context.Context, r engine.Request, _ func(engine.Progress)) ([]byte, error) {
	if r.Prompt == refusedPrompt {
		return nil, engine.NewError(engine.FaultUser, engine.CodeRefused, 0, errors.New("its own words"))
	}
	u.began <- struct{}{}
	<-ctx.Done()
	return nil, engine.NewError(engine.FaultOurs, engine.CodeCanceled, 0, ctx.Err())
}

// A receiver is told how what has no picture ended, and why it failed.
func TestAFailureAndACancellationAreTold(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		s := serve(t, "", map[string]string{"ZIMAGE_DATABASE_URL": url, "ZIMAGE_OUTBOUND_LOOPBACK": "true"})
		engines := unwilling{make(chan struct{}, 1)}
		s.app.open = func(engine.Settings) (engine.Engine, error) { return engines, nil }
		s.app.start(t, config.RoleWorker, config.RoleScheduler)
		told := make(chan []byte, 10)
		receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			told <- body
		}))
		t.Cleanup(receiver.Close)
		type one struct{ ID, Status string }
		ask := func(prompt string) (made one) {
			t.Helper()
			s.answered("/v1/generations", fmt.Sprintf(`{"prompt":%q,"webhook_url":%q,"webhook_events":["generation.succeeded","generation.failed","generation.canceled"]}`, prompt, receiver.URL), &made)
			return made
		}
		arrives := func(id, kind, status, code string) {
			t.Helper()
			var body []byte
			select {
			case body = <-told:
			case <-time.After(time.Minute):
				t.Fatalf("%s is not told", kind)
			}
			var event struct {
				Type     string
				Sequence int
				Data     struct {
					one
					Error  struct{ Code string }
					Images []any
				}
			}
			err := json.Unmarshal(body, &event)
			d := event.Data
			if err != nil || event.Type != kind || event.Sequence != 4 || d.one != (one{id, status}) || d.Error.Code != code || len(d.Images) != 0 || bytes.Contains(body, []byte("its own words")) {
				t.Errorf("%s (%v)", body, err)
			}
		}

		arrives(ask(refusedPrompt).ID, "generation.failed", "failed", engine.CodeRefused)

		held := ask("a lighthouse")
		<-engines.began
		if res, text := s.do(http.MethodPost, "/v1/generations/"+held.ID+"/cancel", ""); res.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", res.StatusCode, text)
		}
		arrives(held.ID, "generation.canceled", "canceled", "")
	})
}
