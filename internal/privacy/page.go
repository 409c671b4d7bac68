package privacy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ServiceName is what the service is called.
const ServiceName = "Z Image Generator"

// An Installation is what the page tells of the place where a policy is in force.
type Installation struct {
	URL string // the address that people type, without a slash at its end
	// Plain are the hops that are accepted without verified TLS 1.3, as the
	// settings name them, and engines.
	Plain []string
	// EnginesKeep is the most that any engine keeps of a request by itself: nothing,
	// memory or disk.
	EnginesKeep string
}

// A Statement is what the page says, and the API with it: the policy and the facts.
type Statement struct {
	Policy
	Installation
}

// An Exception is a hop that is accepted without verified TLS 1.3.
type Exception struct{ Hop, Words string }

var hopWords = map[string]string{
	"listen":   "between the service and whatever stands in front of it, such as a proxy that speaks TLS with you",
	"metrics":  "between the service and the operator's monitoring; figures without names alone",
	"database": "between the service and its database",
	"keys":     "between the service and the store of its keys",
	"redis":    "between the service and Redis, which holds ids alone",
	"s3":       "between the service and the object store; what passes there is sealed already",
	"smtp":     "between the service and the mail server",
	"engines":  "between the service and an engine that makes pictures; prompts and pictures pass there",
}

// Exceptions are the hops in words.
func (s Statement) Exceptions() []Exception {
	all := make([]Exception, len(s.Plain))
	for i, hop := range s.Plain {
		all[i] = Exception{hop, cmp.Or(hopWords[hop], "between parts of the service")}
	}
	return all
}

// On are the processors that are given data.
func (s Statement) On() []Processor { return s.processors(true) }

// Off are those that are in the register and given nothing.
func (s Statement) Off() []Processor { return s.processors(false) }

func (s Statement) processors(on bool) []Processor {
	return slices.DeleteFunc(slices.Clone(s.Processors), func(p Processor) bool { return p.On() != on })
}

// AuthoritiesURL lists the authorities of the European Union.
const AuthoritiesURL = "https://www.edpb.europa.eu/about-edpb/about-edpb/members_en"

// Complaint says how to complain about the operator to an authority. It belongs on
// the page and into every refusal.
func (p Policy) Complaint() string {
	text := "You can complain to a data protection authority at any time, without asking us first: to that of the place where you live or work, or where you think that your rights were violated. Those of the European Union are listed at " + AuthoritiesURL + "."
	if p.Authority.Name != "" {
		text += fmt.Sprintf(" We are supervised by %s, %s.", p.Authority.Name, p.Authority.URL)
	}
	return text
}

// securityLife is how far ahead security.txt expires: RFC 9116 advises less than a
// year. It is made anew each time it is asked for.
const securityLife = 180 * 24 * time.Hour

// SecurityTxt is the file of RFC 9116, with all who can be reached, in the order in
// which to try.
func (s Statement) SecurityTxt(now time.Time) string {
	var b strings.Builder
	b.WriteString("# Weaknesses: the first address. The others are those of privacy and of the\n# Data Protection Officer.\n")
	var told []string
	for _, contact := range []string{s.Contacts.Security, s.Contacts.Privacy, s.Contacts.DPO} {
		if !slices.Contains(told, contact) {
			fmt.Fprintf(&b, "Contact: mailto:%s\n", contact)
			told = append(told, contact)
		}
	}
	fmt.Fprintf(&b, "Expires: %s\n", now.UTC().Add(securityLife).Format(time.RFC3339))
	b.WriteString("Preferred-Languages: en\n")
	fmt.Fprintf(&b, "Canonical: %s/.well-known/security.txt\n", s.URL)
	fmt.Fprintf(&b, "Policy: %s/privacy#reporting\n", s.URL)
	return b.String()
}

// GPC is what the Global Privacy Control specification wants to find: that the
// signal is followed.
func (s Statement) GPC() []byte {
	text, err := json.Marshal(struct {
		GPC        bool   `json:"gpc"`
		LastUpdate string `json:"lastUpdate"`
	}{true, s.Date.Format(time.DateOnly)})
	if err != nil {
		panic(err) // our own type
	}
	return text
}
