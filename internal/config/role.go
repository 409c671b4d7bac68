package config

// A Role is what a process does.
type Role string

// The roles. RoleUp is all of them in one process, as cmd/zimage runs them.
const (
	RoleAPI       Role = "api"
	RoleWorker    Role = "worker"
	RoleScheduler Role = "scheduler"
	RoleUp        Role = "up"
)

// Validate checks what this role needs beyond Load. The error is Problems.
func (c Config) Validate(role Role) error { return c.forRole(role).err() }

func (c Config) forRole(role Role) Problems {
	var problems Problems
	if role == RoleAPI || role == RoleUp {
		c.checkListen(&problems)
	}
	c.checkMetricsListen(&problems)
	if role == RoleUp {
		return problems // everything has an embedded default
	}
	// Processes of their own must meet in the same stores, perhaps from several
	// machines. SQLite would even work on one machine, but `zimage up` locks its
	// folder and gives running jobs back at start, as its only process; two
	// ways to run on one file would be one too many.
	for _, database := range []struct{ variable, address string }{
		{"DATABASE_URL", c.DatabaseURL}, {"KEYS_DATABASE_URL", c.KeysDatabaseURL},
	} {
		if !isPostgres(database.address) {
			problems.add(database.variable, "must be postgres://… for the "+string(role)+": SQLite is for `zimage up`, which is all roles in one process")
		}
	}
	if c.RedisURL == "" {
		problems.add("REDIS_URL", "is missing: processes of their own need a Redis between them; the in-process one is for `zimage up`")
	}
	// A folder is right only where every process sees the same one, which nobody
	// can check from here: the operator says so by naming it in full.
	if !c.UsesS3() && !c.dataShared {
		problems.add("S3_ENDPOINT", "is missing: set the S3 settings, or "+Prefix+"DATA to the absolute path of a folder that every api, worker and scheduler shares")
	}
	if !c.isSet("ROOT_KEYS") {
		problems.add("ROOT_KEYS", "is missing: every process needs the same root keys, so none makes its own")
	} else if message := unreadable(c.RootKeys); message != "" {
		problems.add("ROOT_KEYS", message)
	}
	return problems
}
