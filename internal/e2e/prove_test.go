package e2e

import (
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The command proves it on separate processes, down to the files of PostgreSQL, of
// MinIO and of Redis, and to the log of each process.
func TestPromise_R2_ProvenOnSeparateProcesses(t *testing.T) {
	t.Parallel()
	c := start(t, Options{})
	api := c.API("api")
	all := []*Process{api, c.Worker("worker"), c.Scheduler("scheduler")}
	args := []string{"prove", "--json", "--wait", "5m", "--url", api.URL, "--postgres", c.Postgres.Dir(),
		"--folder", c.Minio.Dir(), "--folder", c.Redis.Dir(), "--temp", c.dir}
	for _, p := range all {
		args = append(args, "--log", filepath.Join(c.dir, p.Name+".log"))
	}
	metrics := "METRICS_LISTEN=" + strings.TrimPrefix(api.Metrics, "http://")
	cmd := exec.Command(builds.path(t, binZimage), args...)
	cmd.Env, cmd.Dir = environment(c.dir, c.direct, []string{metrics}), c.dir
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	out, err := run(ctx, cmd)
	if err != nil {
		t.Fatal(err)
	}
	type count struct {
		Things, Unread int
		Bytes          int64
		Found          []any
	}
	var report struct {
		Account string
		Places  []struct {
			Place, Control string
			Life           count `json:"while_the_account_lives"`
			After          count `json:"after_its_erasure"`
		}
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatal(err, out)
	}
	var names []string
	for _, p := range report.Places {
		names = append(names, p.Place)
		found := p.After.Found
		if p.Place != "mail folder" { // where they can be read for a day
			found = append(found, p.Life.Found...)
		}
		planted := !slices.Contains([]string{"logs", "metrics"}, p.Place)
		if len(found) > 0 || p.Life.Unread+p.After.Unread > 0 || planted != strings.HasPrefix(p.Control, "found, in ") {
			t.Errorf("%s: %+v", p.Place, p)
		}
		if p.Life.Bytes == 0 {
			t.Errorf("%s: nothing was looked at", p.Place)
		}
	}
	if want := []string{"database", "key store", "database files", "objects", "redis", "mail folder", "data folder", "other folders", "temporary files", "logs", "metrics"}; !slices.Equal(names, want) {
		t.Errorf("looked at %v, want %v", names, want)
	}
	var state string
	if err := c.DB.Get(ctx, &state, `SELECT state FROM subjects WHERE id = ?`, report.Account); err != nil || state != "erased" {
		t.Errorf("the account is %q, %v", state, err)
	}
}
