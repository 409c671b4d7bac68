package privacy

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"zimage/internal/vault"
)

//go:embed datamap.yaml
var dataMap []byte

// ShippedMap is its text.
func ShippedMap() []byte { return dataMap }

// DataMap is the map of this version of the program.
func DataMap() (*Map, error) { return ParseMap(dataMap) }

// A Map says of everything that the service stores what it is, whose, why, for
// how long, how it is protected, and what an export and an erasure do with it.
// Nothing in it has a default.
type Map struct {
	Tables  []Table        `yaml:"tables"`
	Objects []StoredObject `yaml:"objects"`
	Redis   []RedisName    `yaml:"redis"`
	Files   []DataFile     `yaml:"files"`
	Tasks   TaskTypes      `yaml:"tasks"`
	Mails   MailTemplates  `yaml:"mails"`
	Logs    LogAttributes  `yaml:"logs"`
	Metrics Figures        `yaml:"metrics"`
	Cookies []Cookie       `yaml:"cookies"`
	Engines []EngineCopy   `yaml:"engines"`
}

// Operate is the purpose of what holds nothing of a person: the running of the
// service. All others are the policy's, and rest on the basis that it names.
const Operate = "operate"

// The two databases.
const (
	StoreMain = "main"
	StoreKeys = "keys"
)

var (
	stores = []string{StoreMain, StoreKeys}
	// Categories are the sections of an export.
	categories = []string{"account", "content", "usage", "security", "communication", "operations"}
	// The types that a database may give a column of ours.
	types = map[string][]string{
		"text":   {"text"},
		"words":  {"text"}, // separated by spaces
		"number": {"integer", "bigint"},
		"time":   {"bigint", "timestamp", "timestamp without time zone"}, // milliseconds since 1970; 0 or NULL: not
		"flag":   {"integer", "boolean"},
		"bytes":  {"bytea"},
	}
)

// An Action is what an erasure, or the end of a window, does with a row.
type Action string

// The actions.
const (
	Delete Action = "delete"
	Shred  Action = "shred" // the key is destroyed, what it sealed stays unreadable until the row goes
	Null   Action = "null"  // the column becomes NULL; empty or 0 where it may not be
	Retain Action = "keep"
)

// A Table of one of the databases.
type Table struct {
	Name  string   `yaml:"table"`
	Store string   `yaml:"store"`
	Holds string   `yaml:"holds"`
	Key   []string `yaml:"key"` // the primary key
	// Subject is the column that says whose row it is: a subject's id or, with
	// Through, the key of a row of that table, which is the same person's.
	Subject string `yaml:"subject"`
	Through string `yaml:"through"`
	// Also is a table of persons' rows whose keys may stand in Subject as well.
	Also   string `yaml:"also"`
	Nobody string `yaml:"nobody"` // why the rows are no person's, instead of Subject

	Category string   `yaml:"category"`
	Purposes []string `yaml:"purposes"`
	Keep     []Keep   `yaml:"keep"`   // the first that is over ends the row, or part of it
	Erase    *Erase   `yaml:"erase"`  // nil: nobody's
	Export   string   `yaml:"export"` // the name of its list in the category's section; empty: no column is exported
	Columns  []Column `yaml:"columns"`
	// Beside are fields of its list that stand in tables which are nobody's: the
	// ledger's, which joins them.
	Beside []Beside `yaml:"beside"`
}

// A Beside is a field of an exported list that is no column of its table.
type Beside struct {
	Name  string `yaml:"name"`
	Type  string `yaml:"type"`
	Holds string `yaml:"holds"`
}

// An Erase is what an erasure does with a person's rows.
type Erase struct {
	Do    Action `yaml:"do"`    // delete, shred or keep
	Basis string `yaml:"basis"` // keep: what asks for it
	Until string `yaml:"until"` // keep: when it ends
}

// A Column of a table. Exactly one of Sealed, Hashed, Wrapped and Plain says how
// it is protected, and one of Export and NotExported whether its person gets it;
// rows of nobody are not exported at all.
type Column struct {
	Name        string `yaml:"name"`
	Type        string `yaml:"type"`
	Holds       string `yaml:"holds"`
	Sealed      string `yaml:"sealed"`  // with the key of the row's subject: text or json is inside, or what the ledger opens
	Hashed      string `yaml:"hashed"`  // how
	Wrapped     string `yaml:"wrapped"` // by which key of the installation
	Plain       string `yaml:"plain"`   // the query or the code that needs it so
	Export      string `yaml:"export"`
	Without     string `yaml:"without"` // what of its value is not exported, and why
	NotExported string `yaml:"not_exported"`
	Erase       Action `yaml:"erase"` // of a row that is kept: null or shred; empty: kept with it
}

// An Entry is what is said of everything that is no table.
type Entry struct {
	Holds    string   `yaml:"holds"`
	Purposes []string `yaml:"purposes"`
	Kept     string   `yaml:"kept"`   // how long
	Erased   string   `yaml:"erased"` // what an erasure does with it
}

// A Named thing and what it holds.
type Named struct {
	Name  string `yaml:"name"`
	Holds string `yaml:"holds"`
}

// A StoredObject is a kind of object in the object store.
type StoredObject struct {
	Key      Pattern  `yaml:"key"`
	Subject  string   `yaml:"subject"`  // the part of the key that is the subject's id
	Nobody   string   `yaml:"nobody"`   // or why it is no person's
	Table    string   `yaml:"table"`    // whose rows need it; empty: none
	Category string   `yaml:"category"` // of a person's
	Data     []string `yaml:"data"`     // what it is bound to: words, and parts of the key in <>; empty: not sealed
	Export   string   `yaml:"export"`   // the folder of the export; empty: not exported
	Why      string   `yaml:"not_exported"`
	Entry    `yaml:",inline"`
}

// Bound is the associated data of a sealed object with this key.
func (o StoredObject) Bound(key string) []byte {
	parts, ok := o.Key.Match(key)
	if !ok || len(o.Data) == 0 {
		return nil
	}
	data := make([]string, len(o.Data))
	for i, word := range o.Data {
		if data[i] = word; placeholder.MatchString(word) {
			data[i] = parts[strings.Trim(word, "<>")]
		}
	}
	return vault.Data(data...)
}

// A RedisName is a kind of key or channel in Redis.
type RedisName struct {
	Key     Pattern `yaml:"key"`
	Channel Pattern `yaml:"channel"` // instead of Key
	Entry   `yaml:",inline"`
}

// A DataFile is a kind of file that the program writes on its machine. DATA in
// its name is the folder that the settings name.
type DataFile struct {
	File  Pattern `yaml:"file"`
	Entry `yaml:",inline"`
}

// TaskTypes are the kinds of job, which are also asynq's task types.
type TaskTypes struct {
	Entry `yaml:",inline"`
	Types []TaskType `yaml:"types"`
}

// A TaskType is one of them.
type TaskType struct {
	Name  string `yaml:"type"`
	Does  string `yaml:"does"`
	Ref   string `yaml:"ref"`   // what the job's ref names
	Party string `yaml:"party"` // and its party
}

// MailTemplates are the mails.
type MailTemplates struct {
	Entry     `yaml:",inline"`
	Always    []Named        `yaml:"always"` // stands in every mail
	Templates []MailTemplate `yaml:"templates"`
}

// A MailTemplate is one of them, with the data that it shows.
type MailTemplate struct {
	Name string  `yaml:"template"`
	Data []Named `yaml:"data"`
}

// LogAttributes are the names of all values in logs.
type LogAttributes struct {
	Entry      `yaml:",inline"`
	Attributes []Named `yaml:"attributes"`
}

// Figures are the metrics.
type Figures struct {
	Entry   `yaml:",inline"`
	Labels  []Named  `yaml:"labels"`
	Figures []Figure `yaml:"figures"`
}

// A Figure is one of them.
type Figure struct {
	Name   string   `yaml:"name"`
	Labels []string `yaml:"labels"`
}

// A Cookie that browsers are given.
type Cookie struct {
	Name  string `yaml:"name"`
	Entry `yaml:",inline"`
}

// An EngineCopy is what engines of a kind keep of a request.
type EngineCopy struct {
	Kind  string `yaml:"kind"`
	Entry `yaml:",inline"`
}

// A Pattern is a name with parts in <> that stand for anything without a slash.
type Pattern struct {
	text string
	re   *regexp.Regexp
}

var placeholder = regexp.MustCompile(`<([a-z]+)>`)

// UnmarshalYAML reads a pattern.
func (p *Pattern) UnmarshalYAML(n *yaml.Node) error {
	if err := n.Decode(&p.text); err != nil {
		return err
	}
	var expression strings.Builder
	rest := p.text
	for {
		at := placeholder.FindStringSubmatchIndex(rest)
		if at == nil {
			break
		}
		expression.WriteString(regexp.QuoteMeta(rest[:at[0]]) + "(?P<" + rest[at[2]:at[3]] + ">[^/]+)")
		rest = rest[at[1]:]
	}
	var err error
	p.re, err = regexp.Compile("^" + expression.String() + regexp.QuoteMeta(rest) + "$")
	return err
}

func (p Pattern) String() string { return p.text }

// Prefix is what all names of the pattern begin with.
func (p Pattern) Prefix() string {
	before, _, _ := strings.Cut(p.text, "<")
	return before
}

// Match returns the parts of a name that the pattern describes.
func (p Pattern) Match(name string) (parts map[string]string, ok bool) {
	if p.re == nil {
		return nil, false
	}
	found := p.re.FindStringSubmatch(name)
	if found == nil {
		return nil, false
	}
	parts = map[string]string{}
	for i, part := range p.re.SubexpNames() {
		if i > 0 {
			parts[part] = found[i]
		}
	}
	return parts, true
}

// ParseMap reads a map. Its error names everything that is wrong at once.
func ParseMap(text []byte) (*Map, error) {
	m := &Map{}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(m); err != nil {
		return nil, fmt.Errorf("data map: %w", err)
	}
	c := checker{m: m}
	c.all()
	if len(c.wrong) > 0 {
		return nil, fmt.Errorf("data map:\n%w", errors.Join(c.wrong...))
	}
	return m, nil
}

// Table finds a table; nil when the map has none of that name.
func (m *Map) Table(store, name string) *Table {
	for i := range m.Tables {
		if t := &m.Tables[i]; t.Store == store && t.Name == name {
			return t
		}
	}
	return nil
}

// Column finds a column; nil when the table has none of that name.
func (t *Table) Column(name string) *Column {
	for i := range t.Columns {
		if t.Columns[i].Name == name {
			return &t.Columns[i]
		}
	}
	return nil
}

// Of is the condition for the rows of one person, for a WHERE in the table's
// database. Its one parameter is the subject's id. It is empty for a table that
// is nobody's.
func (m *Map) Of(t *Table) string {
	switch {
	case t.Subject == "":
		return ""
	case t.Also != "":
		other := m.Table(t.Store, t.Also)
		return t.Subject + " IN (WITH person (id) AS (SELECT CAST(? AS TEXT)) SELECT id FROM person UNION ALL SELECT " + other.Key[0] + " FROM " + other.Name +
			" WHERE " + other.Subject + " IN (SELECT id FROM person))"
	case t.Through == "":
		return t.Subject + " = ?"
	}
	other := m.Table(t.Store, t.Through)
	return t.Subject + " IN (SELECT " + other.Key[0] + " FROM " + other.Name + " WHERE " + m.Of(other) + ")"
}

// record is what a hold calls a row of the table, in SQL: its key, joined by colons.
func (t *Table) record() string { return strings.Join(t.Key, " || ':' || ") }

// Bound is the associated data of a sealed column in the row with this id.
func (t *Table) Bound(column, id string) []byte { return vault.Column(t.Name, column, id) }

// Object finds the kind of an object by its key; nil when the map has none.
func (m *Map) Object(key string) *StoredObject {
	for i := range m.Objects {
		if _, ok := m.Objects[i].Key.Match(key); ok {
			return &m.Objects[i]
		}
	}
	return nil
}

// journal is how long a deletion is remembered: as long as it may take, and then as a
// backup from before may live.
func (p Policy) journal() Window {
	deletion, _ := p.Windows.Deletion.Days() // both are given in days
	backups, _ := p.Backups.Days()
	return Days(deletion + backups)
}

// webhooksMost is how long what webhooks were told is kept, if that is within usage.
const webhooksMost = 30

// webhooks is how long what webhooks were told is kept: it is usage, and of a shorter time.
func (p Policy) webhooks() Window {
	if w := Days(webhooksMost); !w.longer(p.Windows.Usage) {
		return w
	}
	return p.Windows.Usage
}

// Window finds a window of the policy by the name that it has there and in the
// map; journal and webhooks are made of these.
func (p Policy) Window(name string) (Window, bool) {
	w, ok := map[string]Window{
		"generated_content": p.Windows.GeneratedContent, "deletion": p.Windows.Deletion,
		"usage": p.Windows.Usage, "support": p.Windows.Support, "journal": p.journal(), "webhooks": p.webhooks(),
	}[name]
	return w, ok
}
