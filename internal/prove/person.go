package prove

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/descope/virtualwebauthn"
)

// person is somebody with a browser, at the API as everybody is.
type person struct {
	*trace

	cookie   string
	id       string
	email    string
	password string
	factors  []string // recovery codes, once there is a second factor
	key      string   // of a program
	codes    []string // that were mailed
	pictures []string // generations
	opened   []string // paths that show a picture to whoever has them
	clerk    *person  // of the staff, once they have served this one
	closed   receiptKey
}

// trace is what was sent in a run, by whomever.
type trace struct {
	base       string
	canary     Canary
	client     *http.Client
	operations []operation // that the API says it has

	sent, exported []string
	unable         map[string]string // inputs that take nothing on this installation, and why
	carried        []sent
	requests       []string // ids of ours
}

func newPerson(base string, c Canary) *person {
	return &person{trace: &trace{base: strings.TrimSuffix(base, "/"), canary: c, unable: map[string]string{}, client: &http.Client{
		Timeout: 2 * time.Minute, Transport: from(c),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}}
}

// from is a way that begins at the canary's own address, where that can be: on the
// loopback network of Linux.
func from(c Canary) *http.Transport {
	four, _ := c.addresses()
	own := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(four, 0)), Timeout: 10 * time.Second}
	usual := net.Dialer{Timeout: 10 * time.Second}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if conn, err := own.DialContext(ctx, "tcp4", address); err == nil {
			return conn, nil
		}
		return usual.DialContext(ctx, network, address)
	}
	return t
}

// word is what is sent through an input.
func (p *person) word(input string) string {
	if !slices.Contains(p.sent, input) {
		p.sent = append(p.sent, input)
	}
	return p.canary.With(input)
}

type object = map[string]any

// refusal is an answer that was not the one that was hoped for.
type refusal struct {
	what   string
	status int
	code   string
}

func (r refusal) Error() string { return fmt.Sprintf("%s: %d %s", r.what, r.status, r.code) }

// ask sends a request. Of an error it tells the code alone: its words may quote
// what was sent.
func (p *person) ask(ctx context.Context, method, path string, body, into any, headers ...string) error {
	text, raw := body.(string)
	if body != nil && !raw {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		text = string(b)
	}
	what := method + " " + template(path)
	r, err := http.NewRequestWithContext(ctx, method, p.base+path, strings.NewReader(text))
	if err != nil {
		return errors.New(what + ": the address of the API is none")
	}
	if text != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	four, six := p.canary.addresses()
	for name, value := range map[string]string{
		"User-Agent":      "Browser/1 (" + p.word("agent") + ")",
		"Referer":         "https://" + p.word("referer") + ".example/",
		"Accept-Language": "en, x-" + p.word("language"),
		"X-Request-ID":    p.word("requestid"),
		"X-Real-IP":       six.String(),
		"X-Forwarded-For": []string{four.String(), six.String()}[len(p.requests)%2],
		"Forwarded":       fmt.Sprintf("for=%s;by=_%s", four, p.word("forwarded")),
		"Cookie":          "visitor=" + p.word("cookie"),
	} {
		r.Header.Set(name, value)
	}
	for pair := range slices.Chunk(headers, 2) {
		r.Header.Set(pair[0], pair[len(pair)-1])
	}
	if p.cookie != "" && r.Header.Get("Authorization") == "" {
		r.Header.Set("Cookie", r.Header.Get("Cookie")+"; "+p.cookie)
	}
	var value any
	_ = json.Unmarshal([]byte(text), &value) // what is broken on purpose has no inputs
	inputs := canariesIn(p.canary, r, value)
	res, err := p.client.Do(r)
	if err != nil {
		var broken *url.Error
		if errors.As(err, &broken) {
			err = broken.Err // without the address
		}
		return fmt.Errorf("%s: %w", what, err)
	}
	defer func() { _ = res.Body.Close() }()
	p.requests = append(p.requests, res.Header.Get("X-Request-ID"))
	p.carried = append(p.carried, sent{method: method, path: r.URL.Path, inputs: inputs, refused: res.StatusCode/100 != 2})
	for _, c := range res.Cookies() {
		p.cookie = c.Name + "=" + c.Value
	}
	answer, err := io.ReadAll(io.LimitReader(res.Body, 256<<20))
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if res.StatusCode/100 != 2 {
		var said struct{ Code string }
		_ = json.Unmarshal(answer, &said) // a proxy's answer has none
		return refusal{what, res.StatusCode, said.Code}
	}
	switch into := into.(type) {
	case nil:
		return nil
	case *[]byte:
		*into = answer
		return nil
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("%s: the answer is no JSON of the kind", what)
	}
	return nil
}

// template is a path without what was made up, and without ids.
func template(path string) string {
	path, _, _ = strings.Cut(path, "?")
	parts := strings.Split(path, "/")
	for i, part := range parts {
		if strings.Contains(part, "_") || len(part) >= 32 { // as tokens of links are
			parts[i] = "{id}"
		}
	}
	return strings.Join(parts, "/")
}

// refused sends what must be refused: wrong requests go ways of their own.
func (p *person) refused(ctx context.Context, method, path string, body any, headers ...string) error {
	err := p.ask(ctx, method, path, body, nil, headers...)
	var r refusal
	if errors.As(err, &r) && r.status < 500 {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("%s %s was accepted", method, template(path))
	}
	return err
}

// live does everything that there is to do, but object to it.
func (p *person) live(ctx context.Context, o Options) error {
	if err := p.describe(ctx); err != nil {
		return err
	}
	p.email = o.Address(p.word("mail"))
	p.password = "four words and " + p.word("password")
	err := p.ask(ctx, "POST", "/v1/account", object{"email": p.email, "username": p.word("username"), "password": p.password,
		"old_enough": true, "consents": []string{"training"}, "name": p.word("name")}, nil)
	if err != nil {
		return err
	}
	code, err := p.mailed(ctx, o)
	if err != nil {
		return fmt.Errorf("the code of the sign-up: %w", err)
	}
	if err := p.ask(ctx, "POST", "/v1/account/confirm", object{"code": code, "password": p.password}, nil); err != nil {
		return err
	}
	var account struct{ ID string }
	if err := p.ask(ctx, "GET", "/v1/account", nil, &account); err != nil {
		return err
	}
	p.id = account.ID
	for _, do := range []func(context.Context, Options) error{p.passwords, p.settle, p.passkey, p.mistakes, p.generate, p.served, p.export} {
		if err := do(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// mailed is a code that came by mail, another than those before.
func (p *person) mailed(ctx context.Context, o Options) (string, error) {
	for range 60 {
		code, err := o.Code(ctx, p.email)
		if err != nil {
			return "", err
		}
		if !slices.Contains(p.codes, code) {
			p.codes = append(p.codes, code)
			return code, nil
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(time.Second):
		}
	}
	return "", errors.New("no new one came")
}

// signIn opens a session, with a recovery code once there are any.
func (p *person) signIn(ctx context.Context) error {
	p.cookie = ""
	who := p.credentials()
	who["email"] = p.email
	return p.ask(ctx, "POST", "/v1/session", who, nil)
}

// passwords forgets the password, and changes the next one.
func (p *person) passwords(ctx context.Context, o Options) error {
	if err := p.ask(ctx, "POST", "/v1/account/password/reset", object{"email": p.email}, nil); err != nil {
		return err
	}
	code, err := p.mailed(ctx, o)
	if err != nil {
		return fmt.Errorf("the code for a new password: %w", err)
	}
	p.password = "four words and " + p.word("reset")
	if err := p.ask(ctx, "POST", "/v1/account/password/reset/confirm", object{"code": code, "password": p.password}, nil); err != nil {
		return err
	}
	if err := p.signIn(ctx); err != nil {
		return err
	}
	p.password = "four words and " + p.word("newpassword")
	return p.ask(ctx, "PUT", "/v1/account/password", object{"password": p.password}, nil)
}

// settle fills what an account can have.
func (p *person) settle(ctx context.Context, o Options) error {
	var made struct{ Token string }
	for _, s := range []struct {
		method, path string
		body, into   any
	}{
		{"PATCH", "/v1/account", object{"username": p.word("rename"), "name": p.word("newname"), "preferences": object{"model": p.word("preference"), "width": 64, "height": 64}}, nil},
		{"POST", "/v1/account/email", object{"email": o.Address(p.word("newmail"))}, nil},
		{"PUT", "/v1/account/consents/marketing", object{"granted": true}, nil},
		{"PUT", "/v1/account/consents/analytics", object{"granted": true}, nil},
		{"POST", "/v1/usage", object{"screen_width": 1920, "screen_height": 1080}, nil},
		{"POST", "/v1/account/requests", object{"kind": "rectification", "note": p.word("note")}, nil},
		{"POST", "/v1/keys", object{"name": p.word("key"), "scopes": []string{"generate", "read"}}, &made},
	} {
		if err := p.ask(ctx, s.method, s.path, s.body, s.into); err != nil {
			return err
		}
	}
	p.key = made.Token
	return p.webhook(ctx)
}

// webhook has the person told at an address that nobody has: what is sent there ends at
// the look-up of its name.
func (p *person) webhook(ctx context.Context) error {
	var made struct{ Webhook struct{ ID string } }
	err := p.ask(ctx, "POST", "/v1/webhooks", object{"url": "https://hooks.invalid/" + p.word("hook"), "description": p.word("description"), "include_prompt": true}, &made)
	if err != nil {
		return err
	}
	return p.ask(ctx, "PATCH", "/v1/webhooks/"+made.Webhook.ID, object{"url": "https://hooks.invalid/" + p.word("otherhook"), "description": p.word("redescription")}, nil)
}

// passkey adds one, where browsers could.
func (p *person) passkey(ctx context.Context, _ Options) error {
	var challenge struct {
		ID      string
		Options json.RawMessage
	}
	var refused refusal
	if err := p.ask(ctx, "POST", "/v1/account/passkeys/challenge", nil, &challenge); errors.As(err, &refused) && refused.status < 500 {
		p.unable["POST /v1/account/passkeys body.name"] = "passkeys need an https address with a name"
		return nil
	} else if err != nil {
		return err
	}
	options, err := virtualwebauthn.ParseAttestationOptions(string(challenge.Options))
	if err != nil {
		return errors.New("the challenge for a passkey is not understood")
	}
	origin, err := url.Parse(p.base)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(origin.Hostname()); ip != nil && ip.IsLoopback() {
		origin.Host = net.JoinHostPort("localhost", origin.Port())
	}
	authenticator := virtualwebauthn.NewAuthenticator()
	authenticator.Options.UserHandle = []byte(options.UserID)
	var credential virtualwebauthn.Credential
	for credential.Key == nil || len(credential.Key.AttestationData()) != 77 { // it leaves out leading zeros of a coordinate
		credential = virtualwebauthn.NewCredential(virtualwebauthn.KeyTypeEC2)
	}
	answer := virtualwebauthn.CreateAttestationResponse(virtualwebauthn.RelyingParty{ID: options.RelyingPartyID, Origin: origin.Scheme + "://" + origin.Host},
		authenticator, credential, *options)
	var added struct {
		RecoveryCodes []string `json:"recovery_codes"`
	}
	err = p.ask(ctx, "POST", "/v1/account/passkeys", object{"name": p.word("passkey"),
		"passkey": object{"challenge_id": challenge.ID, "response": json.RawMessage(answer)}}, &added)
	if err == nil && len(added.RecoveryCodes) == 0 {
		err = errors.New("the first second factor came without recovery codes")
	}
	if err == nil {
		p.factors = added.RecoveryCodes
	}
	return err
}

// mistakes are wrong requests with canaries in them.
func (p *person) mistakes(ctx context.Context, _ Options) error {
	program := []string{"Authorization", "Bearer " + p.key}
	wrong := p.word("mistake")
	for _, m := range []struct {
		method, path string
		body         any
		headers      []string
	}{
		{"GET", "/v1/generations?" + wrong + "=" + wrong, nil, program},
		{"GET", "/v1/generations/gen_" + wrong, nil, program},
		{"GET", "/" + wrong, nil, nil},
		{"POST", "/v1/generations", `{"prompt": "` + wrong + `", "` + wrong + `": `, program},
		{"POST", "/v1/generations", object{"prompt": wrong, wrong: wrong}, program},
		{"POST", "/v1/generations", object{"prompt": wrong, "model": wrong}, program},
		{"GET", "/v1/models", nil, []string{"Authorization", "Bearer zi_" + wrong, "X-" + wrong, wrong}},
		{"POST", "/v1/account/email/confirm", object{"code": "zc_" + wrong}, nil},
		{"POST", "/v1/generations", object{"prompt": wrong}, append([]string{"Content-Type", "text/" + wrong}, program...)},
		{"PUT", "/v1/account/restriction", nil, []string{"Origin", "https://" + wrong + ".example"}},
		{"X" + wrong, "/v1/models", nil, program},
	} {
		if err := p.refused(ctx, m.method, m.path, m.body, m.headers...); err != nil {
			return err
		}
	}
	return p.misuse(ctx, false)
}

// generate has pictures made, in every format, and deletes one.
func (p *person) generate(ctx context.Context, _ Options) error {
	program := []string{"Authorization", "Bearer " + p.key, "Prefer", "wait=60, handling=" + p.word("preference")}
	type generation struct {
		ID, Status string
		Images     []struct{ ID string }
	}
	var made []generation
	for i, format := range []string{"png", "jpeg", "webp"} {
		body := object{"prompt": "a lighthouse, " + p.word("prompt"), "format": format, "embed_prompt": true,
			"metadata": object{p.word("metaname"): p.word("metadata")}, "webhook_url": "https://hooks.invalid/" + p.word("oncehook")}
		headers := append(slices.Clone(program), "Idempotency-Key", fmt.Sprintf("%s-%d", p.word("idempotency"), i))
		negative := slices.Contains(p.sent, "negative")
		if i == 0 || negative {
			body["negative_prompt"] = p.canary.With("negative")
		}
		var g generation
		err := p.ask(ctx, "POST", "/v1/generations", body, &g, headers...)
		var refused refusal
		if i == 0 && errors.As(err, &refused) && refused.status == http.StatusBadRequest {
			p.unable["POST /v1/generations body.negative_prompt"] = "the model takes no negative prompt"
			delete(body, "negative_prompt")
			err = p.ask(ctx, "POST", "/v1/generations", body, &g, headers...)
		} else if i == 0 && err == nil {
			p.word("negative")
		}
		if err != nil {
			return err
		}
		for range 30 {
			if err := p.ask(ctx, "GET", "/v1/generations/"+g.ID, nil, &g, program...); err != nil {
				return err
			}
			if g.Status != "queued" && g.Status != "running" {
				break
			}
		}
		if g.Status != "succeeded" || len(g.Images) == 0 {
			return fmt.Errorf("a generation is %s: without pictures nothing is proven", g.Status)
		}
		made, p.pictures = append(made, g), append(p.pictures, g.ID)
	}
	if err := p.openAI(ctx); err != nil {
		return err
	}
	shown := "/v1/images/" + made[0].Images[0].ID
	if err := p.show(ctx, shown); err != nil {
		return err
	}
	var file []byte
	if err := p.ask(ctx, "GET", shown+"/content", nil, &file, append(program, "If-None-Match", `"`+p.word("etag")+`"`)...); err != nil {
		return err
	}
	if err := p.ask(ctx, "GET", "/v1/generations/"+made[0].ID+"/events", nil, &file, append(program, "Last-Event-ID", p.word("event"))...); err != nil {
		return err
	}
	return p.ask(ctx, "DELETE", "/v1/generations/"+made[2].ID, nil, nil, program...)
}

// show makes a link to a picture and shares it, and a stranger looks by both.
func (p *person) show(ctx context.Context, image string) error {
	for _, way := range []string{"/links", "/shares"} {
		var made struct{ URL string }
		if err := p.ask(ctx, "POST", image+way, object{}, &made); err != nil {
			return err
		}
		link, err := url.Parse(made.URL)
		if err != nil {
			return fmt.Errorf("POST %s: what it made is no address", template(image+way)) // without it: it opens the picture
		}
		p.opened = append(p.opened, link.Path)
		if token, ok := strings.CutPrefix(link.Path, "/s/"); ok { // a page, in which the picture is
			p.opened = append(p.opened, "/v1/shared/"+token)
		}
	}
	for _, path := range p.opened {
		if err := p.stranger().ask(ctx, "GET", path, nil, nil); err != nil {
			return err
		}
	}
	return nil
}

// hidden is an error when a stranger sees still what they were shown.
func (p *person) hidden(ctx context.Context) (err error) {
	for _, path := range p.opened {
		answer := p.stranger().ask(ctx, "GET", path, nil, nil)
		var r refusal
		if !errors.As(answer, &r) || r.status != http.StatusNotFound {
			err = errors.Join(err, fmt.Errorf("GET %s: it showed a picture of the erased account, and is not answered with 404 now", template(path)), answer)
		}
	}
	return err
}

// stranger has neither session nor key, and brings the canary along as everybody does.
func (p *person) stranger() *person { return &person{trace: p.trace} }

// openAI makes a picture as OpenAI's clients do.
func (p *person) openAI(ctx context.Context) error {
	body := object{"prompt": "a harbour, " + p.word("openaiprompt"), "user": p.word("user"), "response_format": "url", "output_format": "webp"}
	if slices.Contains(p.sent, "negative") {
		body["negative_prompt"] = p.canary.With("negative")
	} else {
		p.unable["POST /v1/images/generations body.negative_prompt"] = "the model takes no negative prompt"
	}
	return p.ask(ctx, "POST", "/v1/images/generations", body, nil, "Authorization", "Bearer "+p.key, "Idempotency-Key", p.word("openaikey"))
}

// object ends statistics of what the person does.
func (p *person) object(ctx context.Context) error {
	return p.ask(ctx, "PUT", "/v1/account/objections/statistics", nil, nil)
}

// exported are the inputs that an export must hold, so that it is known that they
// were kept at all.
var exported = []string{"mail", "rename", "newname", "preference", "agent", "key", "prompt", "metadata", "metaname", "note", "reason", "letter", "otherhook", "redescription", "openaiprompt"}

// export fetches everything, looks for what was sent, and has it imported again.
func (p *person) export(ctx context.Context, o Options) error {
	if err := p.ask(ctx, "POST", "/v1/session/fresh", p.credentials(), nil); err != nil {
		return err
	}
	var e struct{ ID, Status string }
	if err := p.ask(ctx, "POST", "/v1/account/exports", nil, &e); err != nil {
		return err
	}
	for range 300 {
		if e.Status == "ready" || e.Status == "failed" {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
		if err := p.ask(ctx, "GET", "/v1/account/exports/"+e.ID, nil, &e); err != nil {
			return err
		}
	}
	if e.Status != "ready" {
		return fmt.Errorf("the export is %s", e.Status)
	}
	var archive []byte
	if err := p.ask(ctx, "GET", "/v1/account/exports/"+e.ID+"/content", nil, &archive); err != nil {
		return err
	}
	files, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		return errors.New("the export is no ZIP")
	}
	f := newFinder(p.canary)
	for _, file := range files.File {
		r, err := file.Open()
		if err != nil {
			return err
		}
		_, err = f.search(r, p.sent, func(h hit) {
			if h.input != "" && !slices.Contains(p.exported, h.input) {
				p.exported = append(p.exported, h.input)
			}
		})
		if err := errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	slices.Sort(p.exported)
	for _, input := range exported {
		if !slices.Contains(p.exported, input) {
			return fmt.Errorf("the export does not hold the canary that was sent as %s: it proves nothing that it is not found elsewhere", input)
		}
	}
	return o.Import(ctx, p.id, archive)
}

// credentials prove who the person is.
func (p *person) credentials() object {
	c := object{"password": p.password}
	if len(p.factors) > 0 { // each works once
		c["code"], p.factors = p.factors[0], p.factors[1:]
	}
	return c
}

// close ends the account; receiptKey opens the receipt.
func (p *person) close(ctx context.Context) (key receiptKey, err error) {
	var closed struct{ Receipt receiptKey }
	err = p.ask(ctx, "DELETE", "/v1/account", p.credentials(), &closed)
	return closed.Receipt, err
}

type receiptKey struct{ ID, Secret string }

// receipt is the receipt as it is now, to be saved.
func (p *person) receipt(ctx context.Context) (saved []byte, complete bool, err error) {
	if err := p.ask(ctx, "GET", "/v1/privacy/receipts/"+p.closed.ID, nil, &saved, "Authorization", "Bearer "+p.closed.Secret); err != nil {
		return nil, false, err
	}
	var said struct{ Receipt struct{ State string } }
	if err := json.Unmarshal(saved, &said); err != nil {
		return nil, false, errors.New("the receipt is no JSON")
	}
	return saved, said.Receipt.State == "complete", nil
}
