// Command scheduler keeps the queue in order and makes schedules come round.
// Its settings are the environment variables in README.md.
package main

import (
	"os"

	"zimage/internal/app"
	"zimage/internal/config"
)

func main() {
	os.Exit(app.Main(config.RoleScheduler, os.Args[1:], os.Stdout, os.Stderr))
}
