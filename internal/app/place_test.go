package app

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"zimage/internal/config"
)

func TestPlacesComeFromTheOperatorsFile(t *testing.T) {
	t.Parallel()
	path := placesFile(t, map[string][2]string{"198.51.100.0/24": {"Lyon", "France"}, "2001:db8:1::/48": {"", "Norway"}})
	a := &App{config: config.Config{GeoIP: path}}
	defer func() { _ = a.Close() }()
	place, err := a.openPlaces()
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]string{
		"198.51.100.7": "Lyon, France", "2001:db8:1::9": "Norway", "203.0.113.1": "", "127.0.0.1": "",
	} {
		if got := place(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is at %q, want %q", addr, got, want)
		}
	}
	if err := os.WriteFile(path+".bad", []byte("no database"), 0o600); err != nil {
		t.Fatal(err)
	}
	bad := &App{config: config.Config{GeoIP: path + ".bad"}}
	if _, err := bad.openPlaces(); err == nil {
		t.Error("a file that is no database was taken")
	}
}

// placesFile writes a database of places: city, which may be empty, and country of
// each network.
func placesFile(t *testing.T, networks map[string][2]string) string {
	t.Helper()
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "Test-City", IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	named := func(name string) mmdbtype.Map {
		return mmdbtype.Map{"names": mmdbtype.Map{"en": mmdbtype.String(name)}}
	}
	for network, names := range networks {
		place := mmdbtype.Map{"country": named(names[1])}
		if names[0] != "" {
			place["city"] = named(names[0])
		}
		_, n, err := net.ParseCIDR(network)
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.Insert(n, place); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "places.mmdb")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}
