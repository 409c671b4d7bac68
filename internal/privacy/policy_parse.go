package privacy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/mail"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"zimage/internal/subject"
)

var (
	versionShape = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$`)
	idShape      = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
)

// ParsePolicy reads a policy file. The error has a line for everything that is
// wrong: its path in the file, and what to write there.
func ParsePolicy(text []byte) (Policy, error) {
	var root, more yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&root); err != nil && !errors.Is(err, io.EOF) {
		return Policy{}, fmt.Errorf("policy file: %w", err)
	}
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return Policy{}, errors.New("policy file: write one document, without a line of dashes in it")
	}
	var p Policy
	r := &policyReader{wrong: map[string]bool{}}
	top := &yaml.Node{Kind: yaml.MappingNode} // of an empty file
	if len(root.Content) > 0 {
		top = root.Content[0]
	}
	if !r.policy(&p)(top, "") {
		r.fault("the file", "write the keys of `zimage policy example`")
	}
	r.agree(p)
	if len(r.faults) > 0 {
		return Policy{}, fmt.Errorf("policy file:\n%s", strings.Join(r.faults, "\n"))
	}
	return p, nil
}

// A policyReader walks the file and collects what is wrong, the first of each
// path: what follows from it would only bury it.
type policyReader struct {
	faults []string
	wrong  map[string]bool
}

func (r *policyReader) fault(path, format string, args ...any) {
	if !r.wrong[path] {
		r.faults = append(r.faults, path+": "+fmt.Sprintf(format, args...))
	}
	r.wrong[path] = true
}

// A policyField is one key of a mapping.
type policyField struct {
	key      string
	optional bool
	want     string // what stands there; said when it is missing or wrong
	read     reading
}

// A reading takes a value, or reports false.
type reading func(n *yaml.Node, path string) bool

func (r *policyReader) policy(p *Policy) reading {
	const address = "a mail address, such as privacy@example.org"
	return r.mapping(
		policyField{key: "version", want: "a name for this version in quotes, of letters, digits, dots and dashes", read: shaped(&p.Version, versionShape)},
		policyField{key: "date", want: "the day since which it is in force, such as 2026-01-31", read: date(&p.Date)},
		policyField{key: "changes", want: "what has changed against the version before, in words", read: words(&p.Changes)},
		policyField{key: "controller", want: "name and address of who answers for the data", read: r.mapping(
			policyField{key: "name", want: "the name of who answers for the data", read: words(&p.Controller.Name)},
			policyField{key: "address", want: "a postal address", read: words(&p.Controller.Address)},
		)},
		policyField{key: "contacts", want: "the addresses privacy, dpo and security", read: r.mapping(
			policyField{key: "privacy", want: address, read: mailAddress(&p.Contacts.Privacy)},
			policyField{key: "dpo", want: address, read: mailAddress(&p.Contacts.DPO)},
			policyField{key: "security", want: address, read: mailAddress(&p.Contacts.Security)},
		)},
		policyField{key: "authority", optional: true, want: "name and url of the authority that watches over you", read: r.mapping(
			policyField{key: "name", want: "the authority's name", read: words(&p.Authority.Name)},
			policyField{key: "url", want: "its address on the web, with https://", read: webAddress(&p.Authority.URL)},
		)},
		policyField{key: "windows", want: "generated_content, deletion, usage and support", read: r.mapping(
			policyField{key: "generated_content", want: "1 to 3650 days, such as 90 days", read: within(&p.Windows.GeneratedContent, 3650)},
			policyField{key: "deletion", want: "1 to 30 days, since the law gives a month", read: within(&p.Windows.Deletion, 30)},
			policyField{key: "usage", want: "a number of days or months, such as 12 months", read: within(&p.Windows.Usage, 0)},
			policyField{key: "support", want: "a number of days or months, such as 24 months", read: within(&p.Windows.Support, 0)},
		)},
		policyField{key: "backups", want: "the age at which the last backup is destroyed, in days, such as 28 days", read: within(&p.Backups, 3650)},
		policyField{key: "volume_encryption", want: `what you have done so that disks are encrypted as a whole, or "" for nothing`, read: maybeWords(&p.VolumeEncryption)},
		policyField{key: "purposes", want: "a list of id, name, words and basis", read: list(func(n *yaml.Node, path string) bool {
			p.Purposes = append(p.Purposes, Purpose{})
			return r.purpose(&p.Purposes[len(p.Purposes)-1])(n, path)
		})},
		policyField{key: "processors", want: "a list of companies, or [] for none", read: list(func(n *yaml.Node, path string) bool {
			p.Processors = append(p.Processors, Processor{})
			return r.processor(&p.Processors[len(p.Processors)-1])(n, path)
		})},
	)
}

func (r *policyReader) purpose(p *Purpose) reading {
	var id, basis string
	fields := r.mapping(
		policyField{key: "id", want: "one of " + purposeNames(subject.Purposes()), read: func(n *yaml.Node, path string) bool {
			return words(&id)(n, path) && slices.Contains(subject.Purposes(), subject.Purpose(id))
		}},
		policyField{key: "name", want: "what people call it", read: words(&p.Name)},
		policyField{key: "words", want: "what is done, and for which interest if it rests on one", read: words(&p.Words)},
		policyField{key: "basis", want: "contract, legal_obligation, consent or legitimate_interests", read: func(n *yaml.Node, path string) bool {
			return words(&basis)(n, path) && slices.Contains([]Basis{Contract, LegalObligation, WithConsent, LegitimateInterests}, Basis(basis))
		}},
	)
	return func(n *yaml.Node, path string) bool {
		ok := fields(n, path)
		p.ID, p.Basis = subject.Purpose(id), Basis(basis)
		return ok
	}
}

func (r *policyReader) processor(p *Processor) reading {
	return r.mapping(
		policyField{key: "id", want: "small letters, digits and dashes, a letter first", read: shaped(&p.ID, idShape)},
		policyField{key: "name", want: "the company's name", read: words(&p.Name)},
		policyField{key: "purpose", want: "what it does for you", read: words(&p.Purpose)},
		policyField{key: "purposes", want: "a list of those for which it is given data, each once, of " + purposeNames(subject.Purposes()), read: func(n *yaml.Node, path string) bool {
			return list(func(n *yaml.Node, path string) bool {
				var one string
				ok := words(&one)(n, path)
				known := slices.Contains(subject.Purposes(), subject.Purpose(one)) && !slices.Contains(p.Purposes, subject.Purpose(one))
				p.Purposes = append(p.Purposes, subject.Purpose(one))
				return ok && known
			})(n, path) && len(p.Purposes) > 0
		}},
		policyField{key: "categories", want: "a list of what it gets to see, such as [mail address]", read: func(n *yaml.Node, path string) bool {
			return list(func(n *yaml.Node, path string) bool {
				var one string
				ok := words(&one)(n, path)
				p.Categories = append(p.Categories, one)
				return ok
			})(n, path) && len(p.Categories) > 0 && !slices.Contains(p.Categories, "")
		}},
		policyField{key: "serves", optional: true, want: "a list of what the program reaches at it, each once, of " + connectionNames(), read: func(n *yaml.Node, path string) bool {
			return list(func(n *yaml.Node, path string) bool {
				var one string
				ok := words(&one)(n, path)
				known := slices.Contains(connections, Connection(one)) && !slices.Contains(p.Serves, Connection(one))
				p.Serves = append(p.Serves, Connection(one))
				return ok && known
			})(n, path)
		}},
		policyField{key: "place", want: "the country where it handles the data", read: words(&p.Place)},
		policyField{key: "safeguard", want: "what protects the data there, such as standard contractual clauses, or why nothing is needed", read: words(&p.Safeguard)},
		policyField{key: "contract", optional: true, want: "the contract that binds it; leave it out while there is none", read: words(&p.Contract)},
		policyField{key: "contract_date", optional: true, want: "the day of the contract, such as 2026-01-31; leave it out while there is none", read: date(&p.ContractDate)},
	)
}

// agree checks what several places say together, as far as they say anything.
func (r *policyReader) agree(p Policy) {
	if p.Backups.longer(p.Windows.Deletion) {
		r.fault("backups", "write at most %s, which is windows.deletion: what is deleted must be gone from backups by then", p.Windows.Deletion)
	}
	missing := subject.Purposes()
	for i, one := range p.Purposes {
		path := fmt.Sprintf("purposes[%d]", i)
		k := slices.Index(missing, one.ID)
		if k < 0 {
			r.fault(path+".id", "stands there twice; keep one of them")
			continue
		}
		missing = slices.Delete(missing, k, k+1)
		switch needed, free := basisOf(one.ID); {
		case free && one.Basis != Contract && one.Basis != LegalObligation:
			r.fault(path+".basis", "write contract or legal_obligation: the program asks for no consent to %s, and knows no objection", one.ID)
		case !free && one.Basis != needed:
			r.fault(path+".basis", "write %s: on that alone the program does %s", needed, one.ID)
		}
	}
	if len(missing) > 0 {
		r.fault("purposes", "%s missing; add id, name, words and basis of each", purposeNames(missing))
	}
	register := map[string]bool{}
	for i, one := range p.Processors {
		path := fmt.Sprintf("processors[%d]", i)
		if register[one.ID] {
			r.fault(path+".id", "stands there twice; give it another")
		}
		register[one.ID] = true
		switch {
		case one.Contract != "" && one.ContractDate.IsZero():
			r.fault(path+".contract_date", "is missing; write the day of the contract, or take the contract out, which turns the processor off")
		case one.Contract == "" && !one.ContractDate.IsZero():
			r.fault(path+".contract", "is missing; write what binds the processor, or take its date out, which turns the processor off")
		}
	}
}

// basisOf is the basis on which subject lets a purpose happen; free when it asks
// for nothing.
func basisOf(id subject.Purpose) (needed Basis, free bool) {
	switch {
	case slices.Contains(subject.ConsentPurposes(), id):
		return WithConsent, false
	case slices.Contains(subject.ObjectionPurposes(), id):
		return LegitimateInterests, false
	}
	return "", true
}

func purposeNames(of []subject.Purpose) string {
	names := make([]string, len(of))
	for i, p := range of {
		names[i] = string(p)
	}
	return strings.Join(names, ", ")
}

func connectionNames() string {
	names := make([]string, len(connections))
	for i, c := range connections {
		names[i] = string(c)
	}
	return strings.Join(names, ", ")
}

// mapping reads exactly these keys. It reports false for what is no mapping; all
// else that is wrong it says itself.
func (r *policyReader) mapping(fields ...policyField) reading {
	return func(n *yaml.Node, path string) bool {
		n = followed(n)
		if n.Kind != yaml.MappingNode {
			return false
		}
		at := func(key string) string { return strings.TrimPrefix(path+"."+key, ".") }
		var names []string
		for _, f := range fields {
			names = append(names, f.key)
		}
		values := map[string]*yaml.Node{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i].Value
			switch {
			case !slices.Contains(names, key):
				r.fault(at(key), "is not known; write one of %s, or take it out", strings.Join(names, ", "))
			case values[key] != nil:
				r.fault(at(key), "stands twice; keep one of them")
			default:
				values[key] = n.Content[i+1]
			}
		}
		for _, f := range fields {
			switch value := values[f.key]; {
			case value == nil && !f.optional:
				r.fault(at(f.key), "is missing; write %s", f.want)
			case value != nil && !f.read(value, at(f.key)):
				r.fault(at(f.key), "write %s", f.want)
			}
		}
		return true
	}
}

// list reads each entry.
func list(entry reading) reading {
	return func(n *yaml.Node, path string) bool {
		n = followed(n)
		if n.Kind != yaml.SequenceNode {
			return false
		}
		ok := true
		for i, one := range n.Content {
			ok = entry(one, fmt.Sprintf("%s[%d]", path, i)) && ok
		}
		return ok
	}
}

func followed(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// wordsMost is how many characters one value may have.
const wordsMost = 2000

// maybeWords takes text, also none.
func maybeWords(into *string) reading {
	return func(n *yaml.Node, _ string) bool {
		n = followed(n)
		if n.Kind != yaml.ScalarNode {
			return false
		}
		text := strings.TrimSpace(n.Value)
		if n.ShortTag() == "!!null" {
			text = ""
		}
		if utf8.RuneCountInString(text) > wordsMost || strings.ContainsFunc(text, func(c rune) bool { return unicode.IsControl(c) && c != '\n' }) {
			return false
		}
		*into = text
		return true
	}
}

func words(into *string) reading {
	return func(n *yaml.Node, path string) bool { return maybeWords(into)(n, path) && *into != "" }
}

func shaped(into *string, shape *regexp.Regexp) reading {
	return func(n *yaml.Node, path string) bool { return words(into)(n, path) && shape.MatchString(*into) }
}

func date(into *time.Time) reading {
	return func(n *yaml.Node, path string) bool {
		var text string
		if !words(&text)(n, path) {
			return false
		}
		day, err := time.Parse(time.DateOnly, text)
		*into = day
		return err == nil
	}
}

// mailAddress takes a bare one, of which a mailto: address can be made as it is.
func mailAddress(into *string) reading {
	return func(n *yaml.Node, path string) bool {
		if !words(into)(n, path) || strings.ContainsAny(*into, " \n?&%#<>\"") {
			return false
		}
		parsed, err := mail.ParseAddress(*into)
		return err == nil && parsed.Address == *into
	}
}

func webAddress(into *string) reading {
	return func(n *yaml.Node, path string) bool {
		if !words(into)(n, path) {
			return false
		}
		u, err := url.Parse(*into)
		return err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil
	}
}

// within takes a window, of at most so many days and in days when most is given.
func within(into *Window, most int) reading {
	return func(n *yaml.Node, path string) bool {
		var text string
		if !words(&text)(n, path) {
			return false
		}
		w, ok := ParseWindow(text)
		days, inDays := w.Days()
		*into = w
		return ok && (most == 0 || inDays && days <= most)
	}
}
