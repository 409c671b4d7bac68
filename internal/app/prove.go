package app

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"zimage/internal/account"
	"zimage/internal/config"
	"zimage/internal/db"
	"zimage/internal/privacy"
	"zimage/internal/prove"
)

// ProveOptions say what `zimage prove` cannot find in the settings. Everything may
// be left out.
type ProveOptions struct {
	URL      string   // of the API, if not the public one
	Mail     string   // PREFIX@DOMAIN of which the person's addresses are made
	Logs     []string // files and folders
	Engines  []string // folders of engines
	Folders  []string // whatever else: a bucket's disk, crash reports
	Postgres string   // PostgreSQL's data folder, when it can be read here
	Redis    string   // Redis' folder, of its dump and its log
	Temp     string   // folder of temporary files
	PlantIn  []string // places in which a canary is left on purpose at the end
	Wait     time.Duration
	Tell     func(string)
	Code     func(address string) (string, error) // asks for a mailed code, where mails are no files
}

// Prove runs the proof on this installation, whose API, worker and scheduler must
// be running.
func (a *App) Prove(ctx context.Context, o ProveOptions) (prove.Report, error) {
	if o.URL == "" {
		o.URL = a.config.PublicURL
	}
	prefix, domain, ok := strings.Cut(o.Mail, "@")
	switch {
	case o.Mail == "" && a.config.UsesSMTP():
		return prove.Report{}, errors.New("a mail server is set, so name an address that you read: --mail you@example.org takes you+WORD@example.org")
	case o.Mail == "":
		prefix, domain = "zimage", "prove.invalid"
	case !ok:
		return prove.Report{}, errors.New("--mail is no address")
	}
	places, err := a.places(o)
	if err != nil {
		return prove.Report{}, err
	}
	return prove.Run(ctx, prove.Options{
		URL: o.URL, Places: places, PlantIn: o.PlantIn, Wait: o.Wait, Tell: o.Tell,
		Address: func(text string) string { return prefix + "+" + text + "@" + domain },
		Code: func(ctx context.Context, address string) (string, error) {
			if a.config.UsesSMTP() {
				if o.Code == nil {
					return "", errors.New("it went to the mail server, and nobody is there to ask for it")
				}
				return o.Code(address)
			}
			return codeInFolder(ctx, a.config.MailFolder(), address)
		},
		Hire: func(ctx context.Context, address, password string) (string, error) {
			return a.Accounts.CreateUserFor(ctx, account.AtTheMachine(), address, password)
		},
		Role: func(ctx context.Context, subject, role string) error {
			if role == "none" {
				role = string(account.NoRole)
			}
			return a.Accounts.SetRole(ctx, account.AtTheMachine(), subject, account.Role(role), "for the proof that nothing is left of it")
		},
		Import: func(ctx context.Context, subject string, archive []byte) error {
			done, err := a.Privacy.Import(ctx, subject, privacy.ImportOptions{Archive: bytes.NewReader(archive), Size: int64(len(archive)), Valid: readable})
			if err == nil {
				_, err = a.Accounts.Adopt(ctx, subject, account.Adopted{Username: done.Username, Profile: done.Profile, Preferences: done.Preferences})
			}
			return err
		},
		Used: func(ctx context.Context, subject string) (bool, error) {
			var n int
			err := a.db.Get(ctx, &n, `SELECT count(*) FROM usage_events WHERE subject = ?`, subject)
			return n > 0, err
		},
		Idle: func(ctx context.Context, subject string) (bool, error) {
			var n int
			err := a.db.Get(ctx, &n, `SELECT count(*) FROM jobs WHERE party = ? AND state IN ('queued', 'waiting', 'running')`, subject)
			return n == 0, err
		},
		Verified: func(receipt []byte) error {
			r, _, err := privacy.VerifyReceipt(receipt, a.vault.PublicKey())
			held := func(x privacy.ReceiptException) bool { return x.Since != nil }
			if err == nil && slices.ContainsFunc(r.Exceptions, held) {
				err = errors.New("the receipt says that a hold keeps something, and nobody placed one")
			}
			return err
		},
	})
}

var mailedCode = regexp.MustCompile(`z[cq]_[A-Za-z0-9_-]{10,}`)

// codeInFolder waits for the mail to an address in the folder of mails.
func codeInFolder(ctx context.Context, folder, address string) (string, error) {
	for range 600 {
		files, err := filepath.Glob(filepath.Join(folder, "*.eml"))
		if err != nil {
			return "", err
		}
		for _, file := range slices.Backward(files) {
			text, err := os.ReadFile(file)
			if err != nil {
				continue // pruned meanwhile
			}
			// Long lines are folded with a = at their end.
			unfolded := strings.ReplaceAll(strings.ReplaceAll(string(text), "=\r\n", ""), "=\n", "")
			if code := mailedCode.FindString(unfolded); code != "" && strings.Contains(unfolded, address) {
				return code, nil
			}
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return "", errors.New("no mail came within a minute: does a worker run?")
}

// places are all in which this installation could leave something.
func (a *App) places(o ProveOptions) ([]prove.Place, error) {
	m := a.Privacy.Map
	kind := func(key string) string {
		if o := m.Object(key); o != nil {
			return o.Key.String()
		}
		return "objects that the data map does not know"
	}
	now := func(text string) []any { return []any{text, a.clock.Millis()} }
	main := prove.Rows("database", a.db, `INSERT INTO schedule_ticks (name, tick, at) VALUES (?, 0, ?)`, `DELETE FROM schedule_ticks WHERE name = ?`, now)
	keys := prove.Rows("key store", a.keys, `INSERT INTO key_rings (id, name, current, previous, seen_at) VALUES (?, 'prove', '', '', ?)`,
		`DELETE FROM key_rings WHERE id = ?`, now)
	main.Open = map[string]string{"holdcase": "a hold names its case, which is no word of the person's"}
	places := []prove.Place{main, keys}

	// The same as raw bytes. What is committed is in a file.
	raw := func(name string, rows prove.Place, paths []string) {
		p := prove.Folder(name, paths, nil)
		p.Plant, p.Copies, p.Open = rows.Plant, 1, rows.Open
		places = append(places, p)
	}
	files := func(address string) []string {
		path, _ := strings.CutPrefix(address, "sqlite:")
		found, _ := filepath.Glob(path + "*")
		return found
	}
	if a.db.Dialect() == db.SQLite {
		raw("database files", main, files(a.config.DatabaseURL))
	} else if o.Postgres != "" {
		raw("database files", main, []string{o.Postgres})
	}
	if a.keys.Dialect() == db.SQLite {
		raw("key store files", keys, files(a.config.KeysDatabaseURL))
	}
	places = append(places, prove.Stored(a.objects, kind))
	if a.config.RedisURL != unreachable {
		places = append(places, prove.Rings(a.redis))
		if o.Redis != "" {
			places = append(places, prove.Dumps(a.redis, o.Redis))
		}
	}

	isFolder := func(path string) bool {
		info, err := os.Stat(path)
		return err == nil && info.IsDir()
	}
	spool := a.config.MailFolder()
	if !a.config.UsesSMTP() {
		if err := os.MkdirAll(spool, 0o700); err != nil {
			return nil, err
		}
		p := prove.Folder("mail folder", []string{spool}, nil)
		p.Readable = "without a mail server, mails are files for a day"
		places = append(places, p)
	}
	if isFolder(a.config.Data) {
		known := append(files(a.config.DatabaseURL), files(a.config.KeysDatabaseURL)...)
		places = append(places, prove.Folder("data folder", []string{a.config.Data}, func(path string) bool {
			return path == spool || slices.Contains(known, path)
		}))
	}
	if len(o.Engines) > 0 {
		places = append(places, prove.Folder("engines' folders", o.Engines, nil))
	}
	if len(o.Folders) > 0 {
		p := prove.Folder("other folders", o.Folders, nil)
		p.Filled = true
		places = append(places, p)
	}
	if o.Temp != "" { // with what lies there and is looked at already left out
		known := append([]string{a.config.Data, spool, o.Postgres}, o.Logs...)
		places = append(places, prove.Folder("temporary files", []string{o.Temp}, func(path string) bool { return slices.Contains(known, path) }))
	}
	if len(o.Logs) > 0 {
		places = append(places, prove.Logs(o.Logs))
	}
	if page := a.metricsPage(); page != "" {
		places = append(places, prove.Place{
			Name: "metrics", Why: "it is what the processes count",
			Look: func(ctx context.Context, s *prove.Search) error { return lookAtPage(ctx, page, s) },
		})
	}
	return places, nil
}

// unreachable is the address of a Redis that nobody asks: `zimage up` has its own
// within the process.
const unreachable = "redis://127.0.0.1:1/0"

// Beside makes settings good for a command beside the running processes: it rings
// nobody, and workers look every two seconds.
func Beside(c config.Config) config.Config {
	if c.RedisURL == "" {
		c.RedisURL = unreachable
	}
	return c
}

// metricsPage is where a process on this machine shows its figures, if one does.
func (a *App) metricsPage() string {
	if a.config.MetricsListen == "off" || strings.HasPrefix(a.config.MetricsListen, "unix:") {
		return ""
	}
	if alive(context.Background(), a.config.MetricsListen, nil) != nil {
		return ""
	}
	return "http://" + a.config.MetricsListen + "/metrics"
}

func lookAtPage(ctx context.Context, page string, s *prove.Search) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	return errors.Join(s.Read("figures", io.LimitReader(res.Body, 64<<20)), res.Body.Close())
}
