package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"zimage/internal/clock"
	"zimage/internal/config"
	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/generate"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/objects"
	"zimage/internal/privacy"
	"zimage/internal/vault"
	"zimage/internal/webhook"
)

// A Finding is what the doctor says of one part.
type Finding struct {
	Part string
	Bad  bool   // it keeps the service from starting or working
	Warn bool   // it works, but not as it should, or not yet
	Text string // what was found
	Mend string // how to mend it; empty when nothing is to be done
}

// Examine checks what a start of the role checks, and then how the parts do that
// may be away meanwhile. It changes nothing anywhere. Each finding comes as it is
// made; none ends the examination.
func Examine(ctx context.Context, c config.Config, role config.Role, tell func(Finding)) {
	d := doctor{c, role, tell}
	engines, known := d.files()
	d.listeners(ctx)
	if c.OutboundLoopback {
		d.warn("webhooks", "may lead to this machine, at any port and without TLS", "take "+config.Prefix+"OUTBOUND_LOOPBACK away, which is for development alone")
	}
	if role == config.RoleUp {
		d.data()
	}
	main, ready := d.database(ctx, "database", "DATABASE_URL", c.DatabaseURL, db.Main())
	keys, keysReady := d.database(ctx, "key store", "KEYS_DATABASE_URL", c.KeysDatabaseURL, vault.Migrations())
	for _, opened := range []*db.DB{main, keys} {
		if opened != nil {
			defer func() { _ = opened.Close() }()
		}
	}
	if ready && keysReady {
		d.dataMap(ctx, main, keys)
	}
	d.roots(ctx, keys)
	d.redis(ctx)
	d.objects(ctx)
	if role == config.RoleUp || role == config.RoleWorker && (len(c.Lanes) == 0 || slices.Contains(c.Lanes, jobs.Housekeeping)) {
		d.mail(ctx) // nobody else sends any
	}
	if known && (role == config.RoleUp || role == config.RoleWorker) {
		d.engines(ctx, engines) // nobody else speaks to them, or has their credentials
	}
	if main != nil && ready {
		d.policyInForce(ctx, main)
		d.clock(ctx, main)
		d.workers(ctx, main, engines, known)
	}
}

type doctor struct {
	c    config.Config
	role config.Role
	tell func(Finding)
}

func (d doctor) good(part, text string) { d.tell(Finding{Part: part, Text: text}) }

func (d doctor) bad(part string, err error, mend string) {
	d.tell(Finding{Part: part, Bad: true, Text: err.Error(), Mend: mend})
}

func (d doctor) warn(part, text, mend string) {
	d.tell(Finding{Part: part, Warn: true, Text: text, Mend: mend})
}

// files reads the operator's files as a start does.
func (d doctor) files() (engines engine.Config, known bool) {
	engines, err := readEngines(d.c)
	switch {
	case err != nil:
		d.bad("engines file", err, "mend it; `zimage engines example` prints one to start from")
	case d.c.Engines == "":
		d.good("engines file", "none: the built-in illustrator")
	default:
		d.good("engines file", d.c.Engines)
	}
	if _, err := readRules(d.c); err != nil {
		d.bad("prompt rules", err, "mend that rule, or take "+config.Prefix+"PROMPT_RULES away")
	} else if d.c.PromptRules != "" {
		d.good("prompt rules", d.c.PromptRules)
	}
	d.policy(engines)
	return engines, err == nil
}

func (d doctor) policy(engines engine.Config) {
	const part = "policy"
	p, err := readPolicy(d.c)
	if err != nil {
		d.bad(part, err, "mend it; `zimage policy check` reads it again, `zimage policy example` prints one to start from")
		return
	}
	if err := checkBound(d.c, p, engines); err != nil {
		d.bad("processors", err, "write contract and contract_date of each into the policy, under a new version; or take the setting away, or what does not lead there out of its serves")
	}
	name := d.c.Policy
	if name == "" {
		name = "the shipped one"
	}
	text := fmt.Sprintf("%s, version %s; generated content is kept %s", name, p.Version, p.Windows.GeneratedContent)
	if left := p.Placeholders(); len(left) > 0 && !d.c.PublicIsLocal() {
		d.warn(part, text+"; it names nobody, though the service is public: "+strings.Join(left, ", "),
			"edit what `zimage policy example` prints and name it by "+config.Prefix+"POLICY")
		return
	}
	d.good(part, text)
}

// policyInForce finds a policy with which no process would start.
func (d doctor) policyInForce(ctx context.Context, main *db.DB) {
	const part = "policy in force"
	p, err := readPolicy(d.c)
	if err != nil {
		return // it is said elsewhere
	}
	switch isNew, err := privacy.CheckPolicy(ctx, main, p); {
	case err != nil:
		d.bad(part, err, "name the file that belongs there by "+config.Prefix+"POLICY; `zimage policy check` says which version a file has")
	case isNew:
		d.good(part, "the next start puts version "+p.Version+" in force")
	default:
		d.good(part, "version "+p.Version)
	}
}

// data checks the folder of `zimage up`.
func (d doctor) data() {
	switch err := CheckData(d.c); {
	case errors.Is(err, fs.ErrNotExist):
		d.warn("data", "there is no folder yet at "+d.c.Data, "`zimage up` makes it")
	case err != nil:
		d.bad("data", err, "run chmod go-w on it, or name another folder by "+config.Prefix+"DATA")
	default:
		d.good("data", d.c.Data)
	}
}

func (d doctor) listeners(ctx context.Context) {
	if d.role == config.RoleUp || d.role == config.RoleAPI {
		var secure *tls.Config
		if d.c.TLSCert != "" {
			secure = &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true} //nolint:gosec // who listens at our own address
		}
		d.listener(ctx, "LISTEN", d.c.Listen, secure)
	}
	if d.c.MetricsListen != "off" {
		d.listener(ctx, "METRICS_LISTEN", d.c.MetricsListen, nil)
	}
}

// listener finds an address that somebody else has taken.
func (d doctor) listener(ctx context.Context, variable, address string, secure *tls.Config) {
	part := "listen " + address
	if alive(ctx, address, secure) == nil {
		d.good(part, "this service already answers there")
		return
	}
	var err error
	if path, ok := strings.CutPrefix(address, "unix:"); ok { // to listen would make the file
		if _, err = os.Lstat(path); err == nil {
			err = fmt.Errorf("%s%s: a file is there already", config.Prefix, variable)
		} else if _, err = os.Stat(filepath.Dir(path)); err != nil {
			err = fmt.Errorf("%s%s: %w", config.Prefix, variable, err)
		}
	} else {
		var l net.Listener
		if l, err = listen(ctx, variable, address); err == nil {
			_ = l.Close()
		}
	}
	if err != nil {
		d.bad(part, err, "end what has it, or name another address by "+config.Prefix+variable)
		return
	}
	d.good(part, "is free")
}

// database opens a database for reading alone and says how far its schema is. It
// is nil when it cannot be read, or holds nothing yet; ready when this version can
// work with it as it is.
func (d doctor) database(ctx context.Context, part, variable, address string, migrations fs.FS) (opened *db.DB, ready bool) {
	if path, ok := strings.CutPrefix(address, "sqlite:"); ok {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			d.warn(part, "there is none yet at "+path, "`zimage up` makes it")
			return nil, false
		}
	}
	opened, err := db.Open(ctx, address, db.Options{Name: "zimage-doctor", MaxConnections: 2, ReadOnly: true})
	if err != nil {
		d.bad(part, err, "check that it runs, that "+config.Prefix+variable+" names it with its user and password, and that it speaks TLS 1.3 off loopback")
		return nil, false
	}
	current, newest, err := opened.Schema(ctx, migrations)
	switch {
	case err != nil:
		d.bad(part, err, "check that the user of "+config.Prefix+variable+" may read it")
	case current > newest:
		d.bad(part, db.ErrNewerSchema, "run that version, or restore the database to what this one knew")
	case current == 0:
		d.warn(part, string(opened.Dialect())+" answers and is empty", "the first start of a process makes its tables")
	case current < newest:
		d.warn(part, fmt.Sprintf("%s answers; %d steps of its schema are to come", opened.Dialect(), newest-current), "the next start of a process of this version makes them: have a backup")
		return opened, false
	default:
		d.good(part, string(opened.Dialect())+" answers")
		return opened, true
	}
	_ = opened.Close()
	return nil, false
}

// dataMap checks what nobody could export or erase.
func (d doctor) dataMap(ctx context.Context, main, keys *db.DB) {
	const part = "data map"
	switch _, err := checkMap(ctx, main, keys); {
	case errors.Is(err, privacy.ErrMap):
		d.bad(part, err, "move a table or column of your own elsewhere, on PostgreSQL into a schema of its own; for one of the service's run the version that made it")
	case err != nil:
		d.bad(part, err, "check that our database users may read the schema")
	default:
		d.good(part, "describes every column of both databases")
	}
}

// roots checks that the key ring opens the key store, which may be nil.
func (d doctor) roots(ctx context.Context, keys *db.DB) {
	const part = "root keys"
	roots, err := readRoots(d.c)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		d.bad(part, err, "mend the file, or restore it from your offline copy")
		return
	}
	if keys != nil {
		if err := vault.Verify(ctx, keys, roots); err != nil {
			d.bad(part, err, "put the key ring that belongs to this key store at "+d.c.RootKeys+", or name the right key store")
			return
		}
	}
	if missing {
		d.warn(part, "there are none yet in "+d.c.RootKeys, "`zimage up` makes them; for separate processes see deploy/README.md")
		return
	}
	if age := time.Since(roots.Created()); age > vault.RotateLate {
		d.warn(part, fmt.Sprintf("the current root is %d days old: destroyed keys stay in backups for longer than the %d days that are promised",
			int(age.Hours()/24), int(2*vault.RotateEvery.Hours()/24)), "run `zimage root rotate`, every day by cron or a timer: it does something only when it is due")
		return
	}
	d.good(part, d.c.RootKeys)
}

// redis never keeps anything from starting: without it work is found every two
// seconds.
func (d doctor) redis(ctx context.Context) {
	const part, without = "redis", "; without it work goes on, found every two seconds"
	if d.c.RedisURL == "" {
		d.good(part, "in-process, with `zimage up`")
		return
	}
	a := &App{config: d.c}
	defer func() { _ = a.Close() }()
	if err := a.openRedis(); err != nil {
		d.bad(part, err, "mend "+config.Prefix+"REDIS_URL")
		return
	}
	if err := a.redis.Ping(ctx).Err(); err != nil {
		var refused redis.Error
		var certificate *tls.CertificateVerificationError
		var alert *net.OpError
		text, mend := "does not answer", "check that it runs and that "+config.Prefix+"REDIS_URL names it, with rediss:// only where it speaks TLS"
		switch {
		case errors.As(err, &refused):
			code, _, _ := strings.Cut(refused.Error(), " ")
			text, mend = "refuses us: "+code, "check user and password in "+config.Prefix+"REDIS_URL"
		case errors.As(err, &certificate):
			text, mend = "its certificate is not one for its name from a known authority", "name its authority by "+config.Prefix+"REDIS_CA, and the host as its certificate does"
		case errors.As(err, &alert) && alert.Op == "remote error": // crypto/tls: it ended the handshake
			text, mend = "refuses the handshake; it needs TLS 1.3", "turn that on in Redis"
		}
		d.warn(part, text, mend+without)
		return
	}
	d.good(part, "answers")
	policy, err := a.redis.ConfigGet(ctx, "maxmemory-policy").Result()
	switch {
	case err != nil:
		d.warn(part, "its maxmemory-policy cannot be read", "make sure that it is noeviction")
	case policy["maxmemory-policy"] != "noeviction":
		d.warn(part, "its maxmemory-policy is "+policy["maxmemory-policy"], "set maxmemory-policy noeviction, or rings may vanish")
	}
}

func (d doctor) objects(ctx context.Context) {
	const part = "objects"
	if !d.c.UsesS3() {
		switch there, err := objects.LookDirectory(d.c.ObjectsFolder()); {
		case err != nil:
			d.bad(part, err, "make "+d.c.ObjectsFolder()+" a folder that this service's account alone may write to")
		case !there:
			d.warn(part, "there is no folder yet at "+d.c.ObjectsFolder(), "the first start makes it")
		default:
			d.good(part, "the folder is there")
		}
		return
	}
	switch there, err := objects.LookS3(ctx, s3Options(d.c)); {
	case err != nil && objects.IsAway(err):
		d.warn(part, err.Error(), "check that it runs and that "+config.Prefix+"S3_ENDPOINT names it; until then results wait in memory")
	case err != nil:
		d.bad(part, err, "check the "+config.Prefix+"S3_… settings: keys, region, TLS and authority")
	case !there:
		d.warn(part, "there is no bucket "+d.c.S3Bucket+" yet", "the first start makes it, if the access key may; otherwise make it")
	default:
		d.good(part, "the bucket answers; that it can be written, once only, is tried at start")
		d.backstop(ctx)
	}
}

// backstop looks for the rule by which the bucket itself deletes old pictures.
func (d doctor) backstop(ctx context.Context) {
	const part = "objects"
	p, err := readPolicy(d.c)
	if err != nil {
		return // it is said elsewhere
	}
	switch there, err := objects.LookBackstop(ctx, s3Options(d.c), privacy.BackstopPrefix, p.BackstopDays()); {
	case err != nil:
		d.warn(part, "the bucket's rules cannot be read: "+err.Error(), "let the access key read and set the bucket's lifecycle; without its rule, nothing deletes old pictures while the service is down")
	case !there:
		d.warn(part, fmt.Sprintf("the bucket has no rule that deletes pictures after %d days", p.BackstopDays()), "the start of a scheduler sets it, and every hour after; if it stays so, let the access key set the bucket's lifecycle")
	default:
		d.good(part, fmt.Sprintf("the bucket itself deletes pictures after %d days", p.BackstopDays()))
	}
}

// mail comes as far as the server would take one, and sends none.
func (d doctor) mail(ctx context.Context) {
	const part = "mail"
	if !d.c.UsesSMTP() {
		folder := d.c.MailFolder()
		switch info, err := os.Stat(folder); {
		case err == nil && !info.IsDir():
			d.bad(part, fmt.Errorf("%s is no folder", folder), "take it away, or name a mail server by "+config.Prefix+"SMTP_URL")
		case d.role == config.RoleWorker:
			d.warn(part, "there is no server: mails lie in "+folder+" for a day and reach nobody", "name one by "+config.Prefix+"SMTP_URL")
		default:
			d.good(part, "no server: mails are files in "+folder+", for a day")
		}
		return
	}
	server, err := mailServer(d.c)
	if err != nil {
		d.bad(part, err, "name a PEM file of the authorities that vouch for the mail server")
		return
	}
	check, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = server.Check(check, d.c.MailFrom)
	var fault *mail.Fault
	if !errors.As(err, &fault) {
		d.good(part, "the server answers and takes mail from us; none was sent")
		return
	}
	const wait = "; until then mails wait, for a day"
	reply := ""
	if fault.Reply != 0 {
		reply = fmt.Sprintf(" (%d)", fault.Reply)
	}
	switch fault.Code {
	case mail.CodeBroken:
		d.warn(part, "the server does not answer", "check that it runs and that "+config.Prefix+"SMTP_URL names it: smtp:// for port 587, smtps:// for port 465"+wait)
	case mail.CodeDeferred:
		d.warn(part, "the server asks to come later"+reply, "if it says so for long, ask whoever runs it"+wait)
	case mail.CodeTLS:
		d.bad(part, errors.New("the server speaks no TLS that we accept"), "it needs TLS 1.3, by STARTTLS for smtp:// and at once for smtps://, and a certificate for its name; "+
			config.Prefix+"SMTP_CA names a private authority"+wait)
	case mail.CodeLogin:
		d.bad(part, errors.New("the server does not accept user and password"+reply), "check them in "+config.Prefix+"SMTP_URL; the server must offer SCRAM-SHA-256, PLAIN or LOGIN"+wait)
	default:
		d.bad(part, errors.New("the server takes nothing from us"+reply), "ask whoever runs it; we say to come from the domain of "+config.Prefix+"MAIL_FROM"+wait)
	}
}

func (d doctor) engines(ctx context.Context, c engine.Config) {
	if len(d.c.Lanes) > 0 {
		c = c.ForLanes(d.c.Lanes)
	}
	for _, s := range c.Engines {
		part := "engine " + s.Name
		e, err := openEngine(s)
		if err != nil { // a worker would not start
			d.bad(part, err, "mend that field of the engines file")
			continue
		}
		check, cancel := context.WithTimeout(ctx, 10*time.Second)
		err = e.Check(check)
		cancel()
		text := s.Kind + " answers; keeps " + s.Keeps + " of a request"
		switch {
		case err != nil:
			d.bad(part, err, "check that it runs at its url and serves its models")
		case s.Keeps == "disk":
			d.warn(part, text, "it leaves prompts or pictures on its disk: see the comments of `zimage engines example`")
		default:
			d.good(part, text)
		}
	}
}

func (d doctor) clock(ctx context.Context, main *db.DB) {
	theirs, err := main.Now(ctx)
	if err != nil {
		return // it is said elsewhere
	}
	d.off(time.Since(theirs).Abs())
}

func (d doctor) off(off time.Duration) {
	text := fmt.Sprintf("this machine is %s off the database", off.Round(time.Second))
	switch {
	case off > clock.MostApart:
		d.bad("clock", errors.New(text+": nothing is deleted because of a time, and no erasure ends"),
			"set the clock that is wrong, of the database's host or of this machine, and set up time synchronisation on both; what waits goes on by itself within an hour")
	case off > 10*time.Second:
		d.warn("clock", text, "set up time synchronisation; the service itself follows the database")
	}
}

// workers tells which lanes are served, and by whom with another engines file.
func (d doctor) workers(ctx context.Context, main *db.DB, engines engine.Config, known bool) {
	var served map[string]jobs.LaneState
	var reported []generate.EngineState
	now := clock.New()
	_, err := now.Sync(ctx, main.Now)
	if err == nil {
		served, err = jobs.Lanes(ctx, main, now)
	}
	if err == nil { // the room's own reading, which needs nothing else of it
		reported, err = (&generate.Service{Options: generate.Options{DB: main, Clock: now}}).ListEngines(ctx)
	}
	if err != nil {
		d.warn("workers", "cannot be asked for: "+err.Error(), "start a process of this version, which brings the schema forward")
		return
	}
	for _, lane := range append(engines.Lanes(), jobs.Housekeeping, mail.Lane, webhook.Lane) {
		mend, waiting := "start `zimage up`, or a worker whose "+config.Prefix+"LANES has ", ""
		if lane == webhook.Lane {
			waiting = deliveriesWaiting(ctx, main)
		}
		switch {
		case served[lane].Slots > 0:
			d.good("lane "+lane, "is served"+waiting)
			continue
		case lane == webhook.Lane:
			mend += jobs.Housekeeping + ", of this version: webhooks go with it; until then nobody's program is told anything"
		case lane == mail.Lane:
			mend += jobs.Housekeeping + ", of this version: mail goes with it; until then mails wait"
		case lane == jobs.Housekeeping:
			mend += "it; until then nothing is deleted"
		default:
			mend += "it; `zimage engines list` tells whether its engines are drained or set aside"
		}
		d.warn("lane "+lane, "no worker serves it now"+waiting, mend)
	}
	if !known {
		return
	}
	byWorker := map[string][]generate.EngineState{}
	for _, e := range reported {
		byWorker[e.Worker] = append(byWorker[e.Worker], e)
	}
	for _, worker := range slices.Sorted(maps.Keys(byWorker)) {
		if differences := differ(engines, byWorker[worker]); len(differences) > 0 {
			d.warn("worker "+worker, "runs with another engines file: "+strings.Join(differences, "; "),
				"give every api, worker and scheduler the same file and restart them; what the api accepts by one, a worker with another may not be able to run")
		}
	}
}

// deliveriesWaiting says how many webhooks are to be called, if any are.
func deliveriesWaiting(ctx context.Context, main *db.DB) string {
	b, err := jobs.BacklogOf(ctx, main, webhook.Lane)
	switch {
	case err != nil:
		return "; what waits cannot be counted: " + err.Error()
	case b == jobs.Backlog{}:
		return ""
	}
	return fmt.Sprintf("; deliveries that wait for a worker: %d, for their next attempt: %d", b.Due, b.Later)
}

// differ says how the engines of one worker are not those of our file in the
// lanes that it takes. It cannot see models, limits and addresses.
func differ(ours engine.Config, theirs []generate.EngineState) (differences []string) {
	add := func(format string, args ...any) { differences = append(differences, fmt.Sprintf(format, args...)) }
	byName, lanes := map[string]generate.EngineState{}, []string{}
	for _, e := range theirs {
		byName[e.Name] = e
		lanes = append(lanes, e.Lane)
	}
	for _, e := range ours.Engines {
		there, has := byName[e.Name]
		delete(byName, e.Name)
		switch {
		case !has && slices.Contains(lanes, e.Lane):
			add("it lacks %s", e.Name)
		case has && (there.Kind != e.Kind || there.Lane != e.Lane):
			add("its %s is %s in lane %s, here %s in lane %s", e.Name, there.Kind, there.Lane, e.Kind, e.Lane)
		case has && there.Slots != e.Slots:
			add("its %s has %d slots, here %d", e.Name, there.Slots, e.Slots)
		}
	}
	for _, e := range theirs {
		if _, left := byName[e.Name]; left {
			add("it has %s, which is not in the file here", e.Name)
		}
	}
	return differences
}
