// Command api serves the JSON API.
// Its settings are the environment variables in README.md.
package main

import (
	"os"

	"zimage/internal/app"
	"zimage/internal/config"
)

func main() {
	os.Exit(app.Main(config.RoleAPI, os.Args[1:], os.Stdout, os.Stderr))
}
