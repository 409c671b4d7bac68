package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"zimage/internal/clock"
	"zimage/internal/config"
	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/jobs"
	"zimage/internal/objects"
	"zimage/internal/vault"
)

// A Finding is what the doctor says of one part.
type Finding struct {
	Part string
	Bad  bool   // it keeps the service from working
	Warn bool   // it works, but not as it should
	Text string // what was found
	Mend string // how to mend it; empty when nothing is to be done
}

// Examine checks every part that the settings name, changing nothing. Each
// finding comes as it is made.
func Examine(ctx context.Context, c config.Config, tell func(Finding)) {
	good := func(part, text string) { tell(Finding{Part: part, Text: text}) }
	bad := func(part string, err error, mend string) {
		tell(Finding{Part: part, Bad: true, Text: err.Error(), Mend: mend})
	}
	warn := func(part, text, mend string) { tell(Finding{Part: part, Warn: true, Text: text, Mend: mend}) }

	if _, err := vault.ReadRoots(c.RootKeys); errors.Is(err, fs.ErrNotExist) {
		warn("root keys", "there are none yet in "+c.RootKeys, "`zimage up` makes them; for separate processes see deploy/README.md")
	} else if err != nil {
		bad("root keys", err, "mend or restore the file that "+config.Prefix+"ROOT_KEYS names")
	} else {
		good("root keys", c.RootKeys)
	}
	var main *db.DB
	for _, d := range []struct{ part, variable, address string }{
		{"database", "DATABASE_URL", c.DatabaseURL}, {"key store", "KEYS_DATABASE_URL", c.KeysDatabaseURL},
	} {
		if path, ok := strings.CutPrefix(d.address, "sqlite:"); ok {
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				warn(d.part, "there is none yet at "+path, "`zimage up` makes it")
				continue
			}
		}
		opened, err := db.Open(ctx, d.address, db.Options{Name: "zimage-doctor", MaxConnections: 2})
		if err != nil {
			bad(d.part, err, "check that it runs and that "+config.Prefix+d.variable+" names it")
			continue
		}
		defer func() { _ = opened.Close() }()
		good(d.part, string(opened.Dialect())+" answers")
		if d.part == "database" {
			main = opened
			if theirs, err := opened.Now(ctx); err == nil {
				if off := time.Since(theirs).Abs(); off > 10*time.Second {
					warn("clock", fmt.Sprintf("this machine is %s off the database", off.Round(time.Second)), "set up time synchronisation; the service itself follows the database")
				}
			}
		}
	}
	examineRedis(ctx, c, good, bad, warn)
	examineObjects(ctx, c, good, bad, warn)
	e, err := readEngines(c)
	if err != nil {
		bad("engines file", err, "`zimage engines example` prints one to start from")
		return
	}
	examineEngines(ctx, e, tell)
	if main != nil {
		examineWorkers(ctx, main, e, good, warn)
	}
}

func examineRedis(ctx context.Context, c config.Config, good func(string, string), bad func(string, error, string), warn func(string, string, string)) {
	if c.RedisURL == "" {
		good("redis", "in-process, with `zimage up`")
		return
	}
	a := &App{config: c}
	defer func() { _ = a.Close() }()
	if err := a.openRedis(); err != nil {
		bad("redis", err, "mend "+config.Prefix+"REDIS_URL")
		return
	}
	if err := a.redis.Ping(ctx).Err(); err != nil {
		bad("redis", errors.New("does not answer"), "check that it runs and that "+config.Prefix+"REDIS_URL names it; without it work goes on, found every two seconds")
		return
	}
	good("redis", "answers")
	policy, err := a.redis.ConfigGet(ctx, "maxmemory-policy").Result()
	switch {
	case err != nil:
		warn("redis", "its maxmemory-policy cannot be read", "make sure that it is noeviction")
	case policy["maxmemory-policy"] != "noeviction":
		warn("redis", "its maxmemory-policy is "+policy["maxmemory-policy"], "set maxmemory-policy noeviction, or rings may vanish")
	}
}

func examineObjects(ctx context.Context, c config.Config, good func(string, string), bad func(string, error, string), warn func(string, string, string)) {
	if !c.UsesS3() {
		if _, err := os.Stat(c.ObjectsFolder()); errors.Is(err, fs.ErrNotExist) {
			warn("objects", "there is no folder yet at "+c.ObjectsFolder(), "`zimage up` makes it")
			return
		}
	}
	a := &App{config: c}
	defer func() { _ = a.Close() }()
	err := a.openObjects(ctx)
	if err == nil {
		err = a.objects.Check(ctx)
	}
	switch {
	case errors.Is(err, objects.ErrFull):
		bad("objects", err, "free some room; results wait in memory until then")
	case err != nil:
		bad("objects", err, "check the "+config.Prefix+"S3_… settings, or the folder's mode and owner")
	default:
		good("objects", "can be written")
	}
}

func examineEngines(ctx context.Context, c engine.Config, tell func(Finding)) {
	for _, s := range c.Engines {
		f := Finding{Part: "engine " + s.Name, Text: s.Kind + " answers; keeps " + s.Keeps + " of a request"}
		if s.Keeps == "disk" {
			f.Warn, f.Mend = true, "it leaves prompts or pictures on its disk: see the comments of `zimage engines example`"
		}
		e, err := openEngine(s)
		if err == nil {
			check, cancel := context.WithTimeout(ctx, 10*time.Second)
			err = e.Check(check)
			cancel()
		}
		if err != nil {
			f = Finding{Part: f.Part, Bad: true, Text: err.Error(), Mend: "check that it runs at its url and serves its models"}
		}
		tell(f)
	}
}

func examineWorkers(ctx context.Context, d *db.DB, c engine.Config, good func(string, string), warn func(string, string, string)) {
	var served map[string]jobs.LaneState
	now := clock.New()
	_, err := now.Sync(ctx, d.Now)
	if err == nil {
		served, err = jobs.Lanes(ctx, d, now)
	}
	if err != nil {
		warn("workers", "the schema is not there yet", "the first start of a process makes it")
		return
	}
	for _, lane := range append(c.Lanes(), jobs.Housekeeping) {
		if served[lane].Slots > 0 {
			good("lane "+lane, "is served")
		} else {
			warn("lane "+lane, "no worker serves it now", "start a worker whose "+config.Prefix+"LANES has it; `zimage engines list` tells whether its engines are drained or set aside")
		}
	}
}
