package app

import (
	"fmt"
	"net/netip"

	"github.com/oschwald/maxminddb-golang/v2"

	"zimage/internal/config"
)

// openPlaces reads the operator's local database of approximate places (the
// MaxMind DB format, such as GeoLite2 or DB-IP City). The function says town and
// country, or as much of it as is known; nil without a database. No address
// leaves the machine.
func (a *App) openPlaces() (func(netip.Addr) string, error) {
	if a.config.GeoIP == "" {
		return nil, nil
	}
	r, err := maxminddb.Open(a.config.GeoIP)
	if err != nil {
		return nil, fmt.Errorf("%sGEOIP: %w", config.Prefix, err)
	}
	a.closing(r.Close)
	return func(addr netip.Addr) string {
		type named struct {
			Names map[string]string `maxminddb:"names"`
		}
		var found struct {
			City    named `maxminddb:"city"`
			Country named `maxminddb:"country"`
		}
		if r.Lookup(addr).Decode(&found) != nil {
			return ""
		}
		city, country := found.City.Names["en"], found.Country.Names["en"]
		if city != "" && country != "" {
			return city + ", " + country
		}
		return city + country
	}, nil
}
