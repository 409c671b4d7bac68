package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// The command proves it on separate processes, down to the files of PostgreSQL, of
// MinIO and of Redis, and to the log of each process.
func TestPromise_R2_ProvenOnSeparateProcesses(t *testing.T) {
	t.Parallel()
	c := start(t, Options{KeptRedis: true, Versioned: true})
	api := c.API("api")
	all := []*Process{api, c.Worker("worker"), c.Scheduler("scheduler")}
	args := []string{"prove", "--json", "--wait", "5m", "--url", api.URL, "--postgres", c.Postgres.Dir(), "--redis", c.Redis.Dir(),
		"--folder", c.Minio.Dir(), "--temp", c.dir}
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
	type finding struct{ Where, Kind, Input, Open string }
	type count struct {
		Things, Unread int
		Bytes          int64
		Found          []finding
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
		found = slices.DeleteFunc(found, func(f finding) bool { return f.Open != "" })
		planted := !slices.Contains([]string{"logs", "metrics"}, p.Place)
		if len(found) > 0 || p.Life.Unread+p.After.Unread > 0 || planted != strings.HasPrefix(p.Control, "found, in ") {
			t.Errorf("%s: %+v", p.Place, p)
		}
		// Beside the mails the data folder has nothing here, and of the mails those of
		// the account go with it.
		empty := p.Place == "data folder"
		if (p.Life.Bytes == 0) != empty || p.After.Bytes == 0 && !empty && p.Place != "mail folder" {
			t.Errorf("%s: looked at %d bytes, and at %d after the erasure", p.Place, p.Life.Bytes, p.After.Bytes)
		}
		for _, part := range [][2]string{{"database files", c.Postgres.Dir() + "/data/pg_wal/0*"}, {"redis files", c.Redis.Dir() + "/dump.rdb"}, {"redis files", c.Redis.Dir() + "/appendonlydir/*.aof"}} {
			if size := sizeOf(t, part[1]); part[0] == p.Place && (size == 0 || p.After.Bytes < size) {
				t.Errorf("%s: looked at %d bytes, and %s has %d", p.Place, p.After.Bytes, part[1], size)
			}
		}
	}
	if want := []string{"database", "key store", "database files", "objects", "redis", "redis files", "mail folder", "data folder", "other folders", "temporary files", "logs", "metrics"}; !slices.Equal(names, want) {
		t.Errorf("looked at %v, want %v", names, want)
	}
	var state string
	if err := c.DB.Get(ctx, &state, `SELECT state FROM subjects WHERE id = ?`, report.Account); err != nil || state != "erased" {
		t.Errorf("the account is %q, %v", state, err)
	}
}

// sizeOf is how many bytes the files of a pattern have.
func sizeOf(t *testing.T, pattern string) (size int64) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if info, err := os.Stat(file); err == nil { // a server may have removed it
			size += info.Size()
		}
	}
	return size
}

// Where the client's requests come from is found in a log that has it, and the API's
// log, of the same requests, does not have it.
func TestPromise_U2_NoLogHasTheClientsAddress(t *testing.T) {
	t.Parallel()
	c := start(t, Options{})
	api := c.API("api")
	seen := make(chan []string, 1)
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen <- []string{r.RemoteAddr, r.Header.Get("X-Forwarded-For")}
	}))
	t.Cleanup(other.Close)
	res, err := client.Get(other.URL)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	for i, address := range <-seen {
		if i == 0 && runtime.GOOS != "linux" {
			continue
		}
		if line := "request from " + address; c.personalIn(line) != "the client's address" {
			t.Errorf("it is not found in %q", line)
		}
	}
	id := c.submits(api, c.Key, "address")
	c.signIn(api)
	for path, status := range map[string]int{"/v1/generations/" + id: http.StatusOK, "/v1/generations/gen_x": http.StatusNotFound, "/none": http.StatusNotFound} {
		c.want(status, api, http.MethodGet, path, c.Key, "", nil)
	}
	c.want(http.StatusUnauthorized, api, http.MethodGet, "/v1/models", "zi_none", "", nil)
	if !strings.Contains(api.Log(), "request_id") {
		t.Error("the log has no requests")
	}
	if what := c.personalIn(api.Log()); what != "" {
		t.Errorf("%s is in the log", what)
	}
}
