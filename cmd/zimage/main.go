// Command zimage is all roles in one process on embedded parts (up), the
// operator's tools, and a client for people.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/alecthomas/kong"

	"zimage/internal/app"
	"zimage/internal/problem"
)

type cli struct {
	Up       upCommand       `cmd:"" help:"Start everything in one process: API, worker and scheduler, on embedded parts."`
	Generate generateCommand `cmd:"" help:"Make a picture of a prompt, with progress, and write it to a file."`
	User     struct {
		Create   userCreate       `cmd:"" help:"Create a user; the password is read from standard input. By it you declare that the person is 13 or older; a mail tells them of the account."`
		List     userList         `cmd:"" help:"List users by id, with state and role."`
		Disable  userDisable      `cmd:"" help:"Suspend a user: no new work, what is there stays readable. The user is told why."`
		Enable   userEnable       `cmd:"" help:"Lift a suspension."`
		Close    userClose        `cmd:"" help:"Close a user's account, for good: access ends within 5 seconds."`
		Reset2FA userResetFactors `cmd:"" name:"reset-2fa" help:"Remove the second factors of a user who has lost them, and end all sessions."`
		Role     userRole         `cmd:"" help:"Make a user with a second factor a member of staff, or no longer one."`
		Disclose userDisclose     `cmd:"" help:"Record that a user's data was disclosed under law. It hands nothing out."`
	} `cmd:"" help:"Manage users."`
	Key struct {
		Create keyCreate `cmd:"" help:"Create an API key for a user and print it, once. The user is told."`
		List   keyList   `cmd:"" help:"List a user's API keys."`
		Revoke keyRevoke `cmd:"" help:"Revoke an API key; it is refused everywhere within 5 seconds. The user is told why."`
	} `cmd:"" help:"Manage API keys."`
	Erasure struct {
		List   erasureList   `cmd:"" help:"List accounts that are being erased, and why one does not go on."`
		Replay erasureReplay `cmd:"" help:"After a restore: erase again what the journal says was erased. Nothing is served before."`
	} `cmd:"" help:"Look after erasures."`
	Hold struct {
		Place   holdPlace   `cmd:"" help:"Keep one record of a user's from every deletion and change."`
		List    holdList    `cmd:"" help:"List holds, and by when they are to be looked at again."`
		Renew   holdRenew   `cmd:"" help:"Keep a hold after a review."`
		Release holdRelease `cmd:"" help:"Release a hold. The deletion that waited for the last one goes on."`
	} `cmd:"" help:"Look after legal holds."`
	Request struct {
		List    requestList    `cmd:"" help:"List what people ask by their rights, and by when it is to be answered."`
		Open    requestOpen    `cmd:"" help:"Open a request for somebody who wrote, with or without an account. A code goes to the address."`
		Confirm requestConfirm `cmd:"" help:"Hand in the code that came back from the address."`
		Show    requestShow    `cmd:"" help:"Open what a request says."`
		Close   requestClose   `cmd:"" help:"Close a request with its outcome. The person is told."`
	} `cmd:"" help:"Look after requests by people's rights."`
	Receipt struct {
		Verify receiptVerify `cmd:"" help:"Check the receipt of an erasure, without the service, and say it in words."`
	} `cmd:"" help:"Check receipts."`
	Engines struct {
		List    enginesList   `cmd:"" help:"List the engines of all living workers."`
		Drain   enginesDrain  `cmd:"" help:"Give an engine no new work; what runs may finish."`
		Resume  enginesResume `cmd:"" help:"Give a drained engine work again."`
		Example engineExample `cmd:"" help:"Print a commented engines file to start from."`
	} `cmd:"" help:"Look after image engines."`
	Policy struct {
		Example policyExample `cmd:"" help:"Print the shipped privacy policy, commented, to start from."`
		Check   policyCheck   `cmd:"" help:"Read a privacy policy and say what is wrong with it."`
		Record  policyRecord  `cmd:"" help:"Print the record of processing activities (GDPR, Article 30), from the policy and the data map."`
	} `cmd:"" help:"Look after the privacy policy."`
	Retention struct {
		Plan retentionPlan `cmd:"" help:"Say what the next sweep ends, by table, and why. It changes nothing."`
	} `cmd:"" help:"Look after what is past its time."`
	Import importCommand `cmd:"" help:"Put the generations and images of an export into a user's account."`
	Ledger struct {
		Verify     ledgerVerify     `cmd:"" help:"Check the whole ledger, and name the first entry or batch that was changed."`
		Checkpoint ledgerCheckpoint `cmd:"" help:"Print the newest checkpoint, to be kept somewhere else."`
	} `cmd:"" help:"Look after the ledger of what was done with people's data."`
	Usage struct {
		Report usageReport `cmd:"" help:"Count how many people used which feature, in tens and without names."`
	} `cmd:"" help:"Learn which features are used."`
	Root struct {
		Rotate rootRotate `cmd:"" help:"Wrap every key with the current root, and make a new one when it is due: call it every day."`
	} `cmd:"" help:"Look after the root keys."`
	Prove    proveCommand    `cmd:"" help:"Prove that nothing is left of somebody who closes their account: a new person uses everything, is erased, and every store is looked through."`
	Doctor   doctorCommand   `cmd:"" help:"Check the settings and every part, and say how to mend what is wrong."`
	Settings settingsCommand `cmd:"" help:"Print every setting, its value and where it comes from, secrets masked."`

	Version kong.VersionFlag `help:"Print the version and exit."`
}

func main() {
	var c cli
	parser := kong.Must(&c,
		kong.Name("zimage"),
		kong.Description("An image generation service whose privacy policy runs as code.\n\nSettings are environment variables (ZIMAGE_…); `zimage settings` prints them."),
		kong.UsageOnError(), kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Vars{"version": app.Version(), "temp": os.TempDir()},
	)
	ctx, abort, stop := app.Signals()
	defer stop()
	command, err := parser.Parse(os.Args[1:])
	parser.FatalIfErrorf(err)
	command.BindTo(ctx, (*context.Context)(nil))
	command.Bind(aborted(abort))
	if err := command.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "zimage: "+words(err))
		stop()
		os.Exit(1) //nolint:gocritic // stop has run
	}
}

// aborted is closed at the second signal.
type aborted <-chan struct{}

// words prefers the message that is meant for people.
func words(err error) string {
	var p *problem.Error
	if !errors.As(err, &p) {
		return err.Error()
	}
	text := p.Message
	for _, f := range p.Fields {
		text += "\n  " + f.Location + " " + f.Message
	}
	return text
}
