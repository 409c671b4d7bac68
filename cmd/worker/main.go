// Command worker runs jobs: generation on its engines, and housekeeping.
// Its settings are the environment variables in README.md.
package main

import (
	"os"

	"zimage/internal/app"
	"zimage/internal/config"
)

func main() {
	os.Exit(app.Main(config.RoleWorker, os.Args[1:], os.Stdout, os.Stderr))
}
