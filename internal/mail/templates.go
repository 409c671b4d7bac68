package mail

import (
	"embed"
	"fmt"
	htmltemplate "html/template"
	"slices"
	"strings"
	texttemplate "text/template"
	"time"
	"unicode"
)

// A letter is what stands behind a Template: its files are templates/NAME.txt
// and .html.
type letter struct {
	subject string   // the same for everybody: it travels and lies about in plain
	needs   []string // data
	may     []string // data that may be missing
	// always: also to somebody who has no account yet, or has just closed it.
	always bool

	text *texttemplate.Template
	html *htmltemplate.Template
}

func (l *letter) shows(key string) bool {
	return slices.Contains(l.needs, key) || slices.Contains(l.may, key)
}

// Templates are all templates with the keys of the data that each shows, of which
// some may be missing.
func Templates() map[Template][]string {
	all := map[Template][]string{}
	for name, l := range letters {
		all[name] = slices.Concat(l.needs, l.may)
	}
	return all
}

var letters = parsed(map[Template]*letter{
	ConfirmSignUp:       {subject: "Confirm your new account", needs: []string{"Code"}, always: true},
	SignUpAttempt:       {subject: "You already have an account"},
	ConfirmEmail:        {subject: "Confirm your new mail address", needs: []string{"Code"}},
	EmailChangeAsked:    {subject: "A new mail address was asked for"},
	EmailChanged:        {subject: "Your mail address was changed"},
	ResetPassword:       {subject: "Set a new password", needs: []string{"Code"}},
	PasswordChanged:     {subject: "Your password was changed"},
	NewDevice:           {subject: "A sign-in from a new device", needs: []string{"When"}, may: []string{"Agent", "Place"}},
	SecondFactorChanged: {subject: "How you sign in was changed", needs: []string{"What"}},
	KeyCreated:          {subject: "An API key was made", may: []string{"Name", "Reason"}},
	KeyRevoked:          {subject: "An API key was revoked", needs: []string{"Reason"}, may: []string{"Name"}},
	RestrictionLifted:   {subject: "A restriction is lifted"},
	AccountMade:         {subject: "An account was made for you"},
	AccountSuspended:    {subject: "Your account is suspended", needs: []string{"Reason"}},
	AccountUnsuspended:  {subject: "Your account is no longer suspended"},
	AccountClosed:       {subject: "Your account is closed", always: true},
	ExportAsked:         {subject: "A copy of your data was asked for"},
	ExportReady:         {subject: "The copy of your data is ready"},
	WebhookDisabled:     {subject: "A webhook was disabled", needs: []string{"Endpoint", "Host", "Why"}},
	ErasureAsked:        {subject: "Your account will be erased", needs: []string{"When", "ID", "Contact"}},
	RequestConfirm:      {subject: "Confirm your privacy request", needs: []string{"Request", "Code", "Contact"}, always: true},
	RequestNothingHeld:  {subject: "The answer to your privacy request", needs: []string{"Request", "Complaint"}, always: true},
	RequestClosed:       {subject: "Your privacy request is closed", needs: []string{"Request", "Outcome", "Reason", "Complaint"}, always: true},
})

//go:embed templates
var files embed.FS

// parsed reads every letter's files; one that is missing or wrong stops the
// program at its start.
func parsed(all map[Template]*letter) map[Template]*letter {
	for name, l := range all {
		file := "templates/" + string(name)
		l.text = texttemplate.Must(texttemplate.ParseFS(files, "templates/layout.txt", file+".txt"))
		l.html = htmltemplate.Must(htmltemplate.ParseFS(files, "templates/layout.html", file+".html"))
	}
	return all
}

// valueMost is how many characters of one value are shown: enough for a reason,
// and no room for a letter within the letter.
const valueMost = 500

// write fills both forms.
func (l *letter) write(name Template, data map[string]string, at time.Time) (text, html string, err error) {
	shown := map[string]string{
		"Subject": l.subject,
		"Asked":   at.Format("2 January 2006, 15:04 UTC"),
		urlKey:    data[urlKey],
	}
	for _, key := range slices.Concat(l.needs, l.may) {
		shown[key] = oneLine(data[key])
	}
	var t, h strings.Builder
	if err := l.text.Execute(&t, shown); err != nil {
		return "", "", fmt.Errorf("fill the template %s: %w", name, err)
	}
	if err := l.html.Execute(&h, shown); err != nil {
		return "", "", fmt.Errorf("fill the template %s: %w", name, err)
	}
	return t.String(), h.String(), nil
}

// oneLine keeps a value from looking like more than a value: no line of its own,
// no change of the reading direction, no more than valueMost characters.
func oneLine(value string) string {
	value = strings.Map(func(r rune) rune {
		switch {
		case unicode.Is(unicode.Bidi_Control, r):
			return -1
		case unicode.IsControl(r), unicode.IsSpace(r):
			return ' '
		}
		return r
	}, strings.ToValidUTF8(value, ""))
	if characters := []rune(value); len(characters) > valueMost {
		value = string(characters[:valueMost]) + "…"
	}
	return strings.TrimSpace(value)
}
