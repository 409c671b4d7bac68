package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/testenv"
)

func TestPromise_X3_LedgerCommands(t *testing.T) {
	t.Parallel()
	i := install(t)
	i.start()
	defer i.stop()
	const address, reason = "ann@example.org", "asked for it on the telephone"
	i.must("violet tractors at dawn\n", "user", "create", "--email", address)
	key := strings.TrimSpace(i.must("", "key", "create", "--email", address, "--scope", "account"))
	i.must("", "user", "disable", "--email", address, "--reason", reason)
	disclose := []string{"user", "disclose", "--email", address, "--reason", reason, "--case", "17 Js", "--authority", "Prosecutor", "--scope", "address"}
	i.must("", append(disclose, "--may-be-told", "yes")...)
	i.must("", append(disclose, "--may-be-told", "no", "--case", "18 Js")...)
	if _, _, code := i.run("", disclose...); code == 0 {
		t.Error("a disclosure was kept without saying whether it may be told")
	}

	// Within a minute it is chained, by the service itself.
	var list string
	testenv.Eventually(t, time.Minute, func() bool {
		list = i.ask("/v1/account/ledger", key, http.StatusOK)
		return !strings.Contains(list, `"sealed":false`)
	})
	for _, want := range []string{"staff.made_key", "at the machine", "staff.suspended", "staff.disclosed", "17 Js", reason, `"role":"operator"`} {
		if !strings.Contains(list, want) {
			t.Errorf("%s lacks %q", list, want)
		}
	}
	if strings.Contains(list, "18 Js") {
		t.Errorf("it tells what must not be told: %s", list)
	}
	held := filepath.Join(i.dir, "checkpoint.json")
	if err := os.WriteFile(held, []byte(i.must("", "ledger", "checkpoint")), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := i.must("", "ledger", "verify"); !strings.Contains(out, "whole") || !strings.Contains(out, "--checkpoint") {
		t.Errorf("%s", out)
	}
	if out := i.must("", "ledger", "verify", "--checkpoint", held); !strings.Contains(out, "holds what the checkpoint") {
		t.Errorf("%s", out)
	}
	i.must("", "user", "close", "--email", address, "--reason", reason)
	i.sql("UPDATE ledger_entries SET kind = 'staff.closed' WHERE kind = 'staff.suspended'")
	if out, errs, code := i.run("", "ledger", "verify"); code != 1 || !strings.Contains(errs, "entry led_") || strings.Contains(out, "whole") {
		t.Errorf("an edit: exit %d\n%s%s", code, out, errs)
	}
	if _, errs, code := i.run("", "ledger", "verify", "--checkpoint", filepath.Join(i.dir, "up.log")); code == 0 || !strings.Contains(errs, "no checkpoint") {
		t.Errorf("another file: exit %d, %s", code, errs)
	}
}

// sql runs a statement on the embedded database, as somebody who has the file.
func (i *installation) sql(statement string) {
	i.t.Helper()
	d, err := db.Open(i.t.Context(), "sqlite:"+filepath.Join(i.dir, "data", "zimage.db"), db.Options{})
	if err == nil {
		_, err = d.Exec(i.t.Context(), statement)
	}
	if err != nil {
		i.t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		i.t.Fatal(err)
	}
}

func TestRootRotateBesideARunningService(t *testing.T) {
	t.Parallel()
	i := install(t)
	i.start()
	defer i.stop()
	ring := filepath.Join(i.dir, "data-roots", "roots.yaml")
	before, err := os.ReadFile(ring)
	if err != nil {
		t.Fatal(err)
	}
	size := []string{"--width", "64", "--height", "64", "--seed", "7"}
	i.must("", append([]string{"generate", "a violet tractor", "-o", "one.png"}, size...)...)

	out := i.must("", "root", "rotate")
	for _, want := range []string{"A new root was made", "offline", "Current root:", "Previous root:", "due to be replaced on", "retired by the first rotation after"} {
		if !strings.Contains(out, want) {
			t.Errorf("rotate does not say %q:\n%s", want, out)
		}
	}
	after, err := os.ReadFile(ring)
	if err != nil || string(after) == string(before) || !strings.Contains(string(after), "previous:") {
		t.Errorf("the key ring (%v)", err)
	}
	if out := i.must("", "root", "rotate"); !strings.Contains(out, "Nothing was due") {
		t.Errorf("again:\n%s", out)
	}
	if out := i.must("", "root", "rotate", "--retire"); !strings.Contains(out, "is retired") {
		t.Errorf("retire:\n%s", out)
	}
	// The service that ran all the time reads what was there and makes new people.
	if list := i.get("/v1/generations"); !strings.Contains(list, "violet") {
		t.Errorf("what was there before: %s", list)
	}
	i.must("violet tractors at dawn\n", "user", "create", "--email", "ann@example.org")
	i.must("", append([]string{"generate", "a violet tractor", "-o", "two.png"}, size...)...)
	if out := i.must("", "doctor"); strings.Contains(out, "✗") {
		t.Errorf("the doctor finds:\n%s", out)
	}
	for _, key := range []string{string(before), string(after)} {
		for line := range strings.Lines(key) {
			if secret, is := strings.CutPrefix(strings.TrimSpace(line), "key: "); is && strings.Contains(i.log()+out, secret) {
				t.Error("a root stands in the log")
			}
		}
	}
}
