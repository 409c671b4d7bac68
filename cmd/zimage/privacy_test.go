package main

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"zimage/internal/testenv"
)

func TestRetentionPlanAndErasureReplay(t *testing.T) {
	t.Parallel()
	i := install(t)
	i.start()
	i.must("", "generate", "a violet tractor", "-o", "one.png", "--width", "64", "--height", "64")
	i.stop() // so that nothing is swept meanwhile
	type line struct {
		Table, Why, Then string
		Due              int64
	}
	due := func() (found []line) {
		t.Helper()
		var lines []line
		if err := json.Unmarshal([]byte(i.must("", "retention", "plan", "--json")), &lines); err != nil {
			t.Fatal(err)
		}
		for _, l := range lines {
			if l.Table == "generations" && l.Due > 0 {
				found = append(found, l)
			}
		}
		return found
	}
	if found := due(); len(found) != 0 {
		t.Errorf("it was made a moment ago: %+v", found)
	}
	i.sql("UPDATE generations SET created_at = created_at - 8640000000, finished_at = finished_at - 8640000000, expires_at = expires_at - 8640000000") // 100 days
	found := due()
	if len(found) != 1 || found[0].Due != 1 || found[0].Why == "" {
		t.Fatalf("%+v", found)
	}
	plan := i.must("", "retention", "plan")
	if !strings.Contains(plan, "BECAUSE") || !strings.Contains(plan, found[0].Why) || !strings.Contains(plan, "100.0 of 90.0 days") {
		t.Errorf("%s lacks %q", plan, found[0].Why)
	}
	if strings.Contains(plan, "violet") {
		t.Error("the plan tells a prompt")
	}
	const nothing = "0 erasures are done again, 0 go on by themselves; 0 generations and images are deleted again, 0 shares, webhooks and revocations of links ended again.\n"
	if out := i.must("", "erasure", "replay"); out != nothing {
		t.Errorf("%s", out)
	}
	if left := due(); len(left) != 1 {
		t.Errorf("a plan or a replay has ended something: %+v", left)
	}
}

func TestPolicyRecord(t *testing.T) {
	t.Parallel()
	i := install(t)
	if out := i.must("", "policy", "record"); !strings.HasPrefix(out, "# Record of processing activities\n") || !strings.Contains(out, "version 2026-01-01") {
		t.Errorf("%s", out)
	}
	var record struct{ Activities []any }
	out := i.must("", "policy", "record", "--json")
	if err := json.Unmarshal([]byte(out), &record); err != nil || len(record.Activities) == 0 || !strings.Contains(out, `"2026-01-01"`) {
		t.Errorf("%s, %v", out, err)
	}
	if _, err := os.Stat(filepath.Join(i.dir, "data")); err == nil {
		t.Error("the record has made an installation")
	}
	i.env = append(i.env, "ZIMAGE_POLICY="+filepath.Join(i.dir, "none.yaml"))
	if out, errs, code := i.run("", "policy", "record"); code == 0 || out != "" || !strings.Contains(errs, "ZIMAGE_POLICY") {
		t.Errorf("a policy that is not there: exit %d, %q, %q", code, out, errs)
	}
}

func TestReceiptVerifyTakesNoOtherFile(t *testing.T) {
	t.Parallel()
	i := install(t)
	file := filepath.Join(i.dir, "receipt.json")
	if err := os.WriteFile(file, []byte(`{"receipt":{}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{file}, {file + ".none"}, {file, "--key", "short"}, {file, "--key", base64.StdEncoding.EncodeToString(make([]byte, 32))}} {
		if out, errs, code := i.run("", append([]string{"receipt", "verify"}, args...)...); code == 0 || errs == "" || strings.Contains(out, "holds") {
			t.Errorf("%v: exit %d, %q, %q", args, code, out, errs)
		}
	}
}

// The receipt of an erasure, as its owner fetched it, holds without the service. One altered byte is found.
func TestReceiptVerify(t *testing.T) {
	t.Parallel()
	i := install(t)
	i.start()
	const address, words = "ann@example.org", "violet tractors at dawn"
	account := strings.TrimSpace(i.must(words+"\n", "user", "create", "--email", address))
	_, session := i.signIn(address, words)
	var closed struct{ Receipt struct{ ID, Secret string } }
	if status, _ := i.send(session, http.MethodDelete, "/v1/account", `{"password":"`+words+`"}`, &closed); status/100 != 2 {
		t.Fatalf("the account is not closed: %d", status)
	}
	var receipt string
	testenv.Eventually(t, 4*time.Minute, func() bool { // no process may have its key in memory still
		receipt = i.ask("/v1/privacy/receipts/"+closed.Receipt.ID, closed.Receipt.Secret, http.StatusOK)
		return strings.Contains(receipt, `"state":"complete"`)
	})
	i.stop()
	var signed struct {
		Signature string
		PublicKey string `json:"public_key"`
	}
	if err := json.Unmarshal([]byte(receipt), &signed); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(i.dir, "receipt.json")
	save := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	save(receipt)
	for _, args := range [][]string{{file}, {file, "--key", signed.PublicKey}} {
		out := i.must("", append([]string{"receipt", "verify"}, args...)...)
		for _, want := range []string{"Receipt " + closed.Receipt.ID + " of the erasure of account " + account + ": complete.", "main users: 1 deleted, 0 left",
			"The signature holds. It was made with the key " + signed.PublicKey} {
			if !strings.Contains(out, want) {
				t.Errorf("%v: %q lacks %q", args, out, want)
			}
		}
	}
	if out, _, code := i.run(receipt, "receipt", "verify", "-"); code != 0 || !strings.Contains(out, "The signature holds.") {
		t.Errorf("from standard input: exit %d, %s", code, out)
	}
	other := func(letter byte) string { return map[bool]string{true: "a", false: "b"}[letter == 'b'] }
	for what, at := range map[string]int{"account": strings.Index(receipt, account) + len(account) - 1, "signature": strings.Index(receipt, signed.Signature)} {
		save(receipt[:at] + other(receipt[at]) + receipt[at+1:])
		if out, errs, code := i.run("", "receipt", "verify", file); code != 1 || out != "" || !strings.Contains(errs, "not what was signed") {
			t.Errorf("another %s: exit %d, %q, %q", what, code, out, errs)
		}
	}
}
