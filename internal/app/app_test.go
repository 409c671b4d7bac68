//go:build unix

package app

import (
	"bytes"
	"testing"

	"zimage/internal/config"
	"zimage/internal/httpapi"
	"zimage/internal/testenv"
)

// What cmd/api, cmd/worker and cmd/scheduler do, without any setting.
func TestVersion(t *testing.T) {
	t.Parallel()
	for _, role := range []config.Role{config.RoleAPI, config.RoleWorker, config.RoleScheduler} {
		var out, errs bytes.Buffer
		if code := Main(role, []string{"--version"}, &out, &errs); code != 0 || out.String() != Version()+"\n" || errs.Len() > 0 {
			t.Errorf("%s: exit %d, %q, %q", role, code, &out, &errs)
		}
	}
}

func TestRedisIsInsideWhenNoneIsNamed(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string]map[string]string{"inside": {}, "outside": {"ZIMAGE_REDIS_URL": testenv.Redis(t)}} {
		a := open(t, config.RoleUp, settings)
		if a.inside != (name == "inside") {
			t.Errorf("%s: inside = %v", name, a.inside)
		}
		if r := a.Ready(t.Context()); r.State != httpapi.StateReady {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
