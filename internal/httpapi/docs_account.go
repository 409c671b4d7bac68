package httpapi

import (
	"encoding/json"
	"net/http"
	"time"

	"zimage/internal/privacy"
	"zimage/internal/problem"
)

// What the examples are made of.
var (
	sampleAt      = time.Date(2026, 1, 15, 9, 30, 0, 0, time.UTC)
	sampleAccount = accountView{
		ID: "sub_06f3k2m9v0q8r5w1x4y7z2a6bc", Email: "ada@example.com", Username: "ada", Name: "Ada", CreatedAt: sampleAt,
		Preferences: preferencesView{Width: 1024, Height: 768, Format: "png"}, Factors: factorsView{TOTP: true, Passkeys: 1, RecoveryCodes: 10},
	}
	sampleSession = sessionView{
		ID: "ses_06f3k2m9v0q8r5w1x4y7z2a6bc", Method: "password+totp", Agent: "Mozilla/5.0 …", Place: "Lyon, France",
		CreatedAt: sampleAt, LastUsedAt: sampleAt, ExpiresAt: sampleAt.AddDate(0, 0, 30), Current: true,
	}
	sampleKey = keyView{
		ID: "key_06f3k2m9v0q8r5w1x4y7z2a6bc", Prefix: "zi_abc123", Name: "laptop", Scopes: []string{"generate", "read"}, CreatedAt: sampleAt,
	}
	samplePasskey   = passkeyView{ID: "pk_06f3k2m9v0q8r5w1x4y7z2a6bc", Name: "telephone", CreatedAt: sampleAt}
	sampleChallenge = challengeView{
		ID:      "chal_06f3k2m9v0q8r5w1x4y7z2a6bc",
		Options: map[string]any{"publicKey": map[string]any{"challenge": "q2f1…", "rpId": "images.example.com", "userVerification": "required"}},
	}
	sampleAnswer   = passkeyAnswerView{ChallengeID: sampleChallenge.ID, Response: json.RawMessage(`{"id":"AbC…","type":"public-key","response":{}}`)}
	sampleRecovery = []string{"k3fh-9x2m-p7qa-w5td", "m8bn-4c6v-x1zr-j0ke"}
	sampleSent     = sent().Body
	sampleWords    = "four words nobody guesses"
	cookieSet      = []string{"Set-Cookie"}
)

func ok(description string, body any, headers ...string) []good {
	return []good{{status: http.StatusOK, description: description, body: body, headers: headers}}
}

func none(description string, headers ...string) []good {
	return []good{{status: http.StatusNoContent, description: description, headers: headers}}
}

var (
	signUpDoc = doc{
		id: "sign-up", tag: tagAccount, summary: "Sign up",
		description: "Asks for a mail address, a username and a password, and for your word that you are 13 or older; nothing else is needed. " +
			"The account is made when the code in the mail is confirmed. The answer does not tell whether the address has an account already: its owner learns that by mail.",
		request: signUpBody{Email: "ada@example.com", Username: "ada", Password: sampleWords, OldEnough: true},
		answers: []good{{status: http.StatusAccepted, description: "A mail is on its way.", body: sampleSent}},
		codes:   []problem.Code{problem.TooYoung, problem.Conflict},
		before:  ageFirst,
	}
	confirmSignUpDoc = doc{
		id: "confirm-sign-up", tag: tagAccount, summary: "Confirm a sign-up",
		description: "The code from the mail, valid for 24 hours, together with the password that was chosen: who signed up with somebody else's address knows only one of them. It signs you in.",
		request:     codePasswordBody{Code: "zc_…", Password: sampleWords},
		answers:     ok("Signed in.", sampleSession, cookieSet...),
		codes:       []problem.Code{problem.LinkInvalid, problem.SignInFailed, problem.Conflict},
	}
	accountDoc = doc{
		id: "get-account", tag: tagAccount, summary: "Look at your account",
		description: "All that is kept of it.",
		answers:     ok("The account.", sampleAccount),
	}
	updateAccountDoc = doc{
		id: "update-account", tag: tagAccount, summary: "Change your account",
		description: "Username, name and preferences. What is left out stays; what is empty is cleared.",
		request:     updateAccountBody{Name: pointer("Ada"), Preferences: &preferencesView{Width: 1024, Height: 768}},
		answers:     ok("As it is now.", sampleAccount),
		codes:       []problem.Code{problem.Conflict},
	}
	closeAccountDoc = doc{
		id: "close-account", tag: tagAccount, summary: "Close your account",
		description: "For good. Proves once more who you are, ends every session and key at once, stops what is queued and running, and erases the account. " +
			"The answer names the receipt of the erasure, with a secret that opens it: both are shown this once and nowhere else.",
		request: credentialsBody{Password: sampleWords, Code: "123456"},
		answers: []good{{status: http.StatusAccepted, description: "Closed; the erasure is on its way.", body: sampleClosed, headers: cookieSet}},
		codes:   []problem.Code{problem.SignInFailed, problem.SecondFactorNeeded},
	}
	changeEmailDoc = doc{
		id: "change-email", tag: tagAccount, summary: "Change your mail address",
		description: "Takes effect when the code that is sent to the new address is confirmed. The old address is told.",
		request:     emailBody{Email: "ada@new.example.com"},
		answers:     []good{{status: http.StatusAccepted, description: "A mail is on its way.", body: sampleSent}},
		codes:       []problem.Code{problem.ReauthNeeded},
	}
	confirmEmailDoc = doc{
		id: "confirm-email", tag: tagAccount, summary: "Confirm a new mail address",
		description: "With the code that was sent to it, in a session of the account. It works once, for 24 hours.",
		request:     codeBody{Code: "zc_…"},
		answers:     none("The new address is in force."),
		codes:       []problem.Code{problem.LinkInvalid, problem.Conflict},
	}
	changePasswordDoc = doc{
		id: "change-password", tag: tagAccount, summary: "Change your password",
		description: "Ends every other session, and gives this one a new token.",
		request:     passwordBody{Password: sampleWords},
		answers:     none("Changed.", cookieSet...),
		codes:       []problem.Code{problem.ReauthNeeded},
	}
	requestResetDoc = doc{
		id: "request-password-reset", tag: tagSignIn, summary: "Ask for a new password",
		description: "Sends a code, valid for 30 minutes, if the address has an account. The answer does not tell.",
		request:     emailBody{Email: "ada@example.com"},
		answers:     []good{{status: http.StatusAccepted, description: "A mail may be on its way.", body: sampleSent}},
	}
	resetDoc = doc{
		id: "reset-password", tag: tagSignIn, summary: "Set a new password",
		description: "With the code from the mail. Ends every session and opens none: a second factor stays in force and is asked for when you sign in.",
		request:     codePasswordBody{Code: "zc_…", Password: sampleWords},
		answers:     none("Set. Sign in with it.", cookieSet...),
		codes:       []problem.Code{problem.LinkInvalid},
	}
	consentsDoc = doc{
		id: "list-consents", tag: tagAccount, summary: "List your consents",
		description: "What you agreed to, with the version of the policy. Until you say so you agree to nothing.",
		answers:     ok("One for each purpose.", consentsView{Data: []consentView{{Purpose: "marketing", Granted: true, PolicyVersion: "2026-01-01", At: &sampleAt}}}),
	}
	setConsentDoc = doc{
		id: "set-consent", tag: tagAccount, summary: "Agree, or take it back",
		description: "In force at once, for whatever asks for it: this version does none of it yet. Each word is kept with its time, as the proof of what you agreed to.",
		request:     setConsentBody{Granted: true},
		answers:     none("Kept."),
	}
	objectionsDoc = doc{
		id: "list-objections", tag: tagAccount, summary: "List your objections",
		description: "The uses that rest on a legitimate interest, and whether you object to them. `statistics` is what would be reckoned from what people did; this version reckons nothing of the kind.",
		answers:     ok("One for each purpose.", objectionsView{Data: []objectionView{{Purpose: "statistics"}}}),
	}
	objectDoc = doc{
		id: "object", tag: tagAccount, summary: "Object to a use",
		description: "In force at once: no such use of your data begins or goes on until you withdraw it.",
		answers:     none("Kept."),
	}
	withdrawObjectionDoc = doc{
		id: "withdraw-objection", tag: tagAccount, summary: "Withdraw an objection",
		description: "The use is allowed again.",
		answers:     none("Allowed."),
		codes:       []problem.Code{problem.Conflict},
	}
	askExportDoc = doc{
		id: "ask-export", tag: tagAccount, summary: "Ask for a copy of your data",
		description: "Has an archive made of everything that is kept of you: a ZIP with JSON, JSON Schema, your images, and pages to read it by. " +
			"One is made at a time, and three within 24 hours. Mails tell that it was asked for and that it is ready; a new password that is set by mail voids it.",
		answers: []good{{status: http.StatusAccepted, description: "It will be made.", body: sampleExport(privacy.ExportQueued), headers: []string{"Location"}}},
		codes:   []problem.Code{problem.Conflict, problem.DailyLimit},
	}
	exportsDoc = doc{
		id: "list-exports", tag: tagAccount, summary: "List your exports",
		description: "Those that are being made, and those that are ready or have failed within 7 days.",
		answers:     ok("Newest first.", exportsView{Data: []exportView{sampleExport(privacy.ExportReady)}}),
	}
	exportDoc = doc{
		id: "get-export", tag: tagAccount, summary: "Look at an export",
		description: "How far it is, and once it is ready its size and checksums.",
		answers:     ok("As it is now.", sampleExport(privacy.ExportRunning)),
		codes:       []problem.Code{problem.NotFound},
	}
	deleteExportDoc = doc{
		id: "delete-export", tag: tagAccount, summary: "Delete an export",
		description: "It is out of sight at once; one that is being made is stopped. It still counts for its day.",
		answers:     none("Deleted."),
		codes:       []problem.Code{problem.NotFound},
	}
	exportContentDoc = doc{
		id: "get-export-content", tag: tagAccount, summary: "Download an export", long: true,
		description: "The ZIP, decrypted for you as it is sent; not to be kept by caches. It is cut when the session ends meanwhile.",
		answers: []good{{status: http.StatusOK, description: "The archive.", kind: "application/zip", body: "(the bytes of the archive)",
			headers: []string{"Content-Disposition"}}},
		codes: []problem.Code{problem.NotFound, problem.Conflict},
	}
	restrictDoc = doc{
		id: "restrict-processing", tag: tagAccount, summary: "Restrict processing",
		description: "Your data stays stored and is not used. No generation is accepted, and what waits or runs ends as canceled with the reason `restricted`, within a few seconds. Signing in, looking, deleting and closing still work.",
		answers:     none("Restricted."),
	}
	unrestrictDoc = doc{
		id: "lift-restriction", tag: tagAccount, summary: "Lift the restriction",
		description: "At once, in a session that proved lately who it is. A mail says that it was done. What was canceled stays so.",
		answers:     none("Lifted."),
		codes:       []problem.Code{problem.ReauthNeeded},
	}

	beginTOTPDoc = doc{
		id: "begin-totp", tag: tagSignIn, summary: "Set up an authenticator app",
		description: "Makes a secret for the app. It is in force once a code of it is confirmed.",
		answers:     ok("The secret, once.", totpView{Secret: "JBSWY3DP…", URI: "otpauth://totp/Z%20Image%20Generator:ada@example.com?issuer=Z%20Image%20Generator&secret=JBSWY3DP…"}), //nolint:gosec // an example
		codes:       []problem.Code{problem.ReauthNeeded, problem.Conflict},
	}
	confirmTOTPDoc = doc{
		id: "confirm-totp", tag: tagSignIn, summary: "Put the authenticator app in force",
		description: "With a code of it. The first second factor ends every other session, gives this one a new token, and gives recovery codes.",
		request:     codeBody{Code: "123456"},
		answers:     ok("In force.", recoveryView{RecoveryCodes: sampleRecovery}, cookieSet...),
		codes:       []problem.Code{problem.ReauthNeeded, problem.Conflict},
	}
	removeTOTPDoc = doc{
		id: "remove-totp", tag: tagSignIn, summary: "Remove the authenticator app",
		description: "Signing in asks for no code of it any more.",
		answers:     none("Removed."),
		codes:       []problem.Code{problem.ReauthNeeded, problem.NotFound, problem.Conflict},
	}
	recoveryCodesDoc = doc{
		id: "new-recovery-codes", tag: tagSignIn, summary: "Make new recovery codes",
		description: "The old ones are void.",
		answers:     ok("The codes, once.", recoveryView{RecoveryCodes: sampleRecovery}, cookieSet...),
		codes:       []problem.Code{problem.ReauthNeeded, problem.Conflict},
	}
	beginPasskeyDoc = doc{
		id: "begin-passkey", tag: tagSignIn, summary: "Begin to register a passkey",
		description: "Gives the challenge for navigator.credentials.create, valid for five minutes.",
		answers:     ok("The challenge.", sampleChallenge),
		codes:       []problem.Code{problem.ReauthNeeded, problem.Conflict},
	}
	addPasskeyDoc = doc{
		id: "add-passkey", tag: tagSignIn, summary: "Register a passkey",
		description: "With what the authenticator answered. It signs in alone, or beside the password as the second factor. The first one gives this session a new token.",
		request:     addPasskeyBody{Name: "telephone", Passkey: sampleAnswer},
		answers:     ok("Registered.", addedPasskeyView{Passkey: samplePasskey, RecoveryCodes: sampleRecovery}, cookieSet...),
		codes:       []problem.Code{problem.ReauthNeeded, problem.Conflict},
	}
	passkeysDoc = doc{
		id: "list-passkeys", tag: tagSignIn, summary: "List your passkeys",
		description: "Those that can sign in as you.",
		answers:     ok("The passkeys.", passkeysView{Data: []passkeyView{samplePasskey}}),
	}
	removePasskeyDoc = doc{
		id: "remove-passkey", tag: tagSignIn, summary: "Remove a passkey",
		description: "It signs nobody in any more.",
		answers:     none("Removed."),
		codes:       []problem.Code{problem.NotFound, problem.ReauthNeeded, problem.Conflict},
	}

	signInDoc = doc{
		id: "sign-in", tag: tagSignIn, summary: "Sign in",
		description: "With mail address and password, and a second factor when one is in force. A wrong address, password or code gives one same answer. A sign-in from a new device is told by mail.",
		request:     signInBody{Email: "ada@example.com", Password: sampleWords, Code: "123456"},
		answers:     ok("Signed in; the answer sets the cookie.", sampleSession, cookieSet...),
		codes:       []problem.Code{problem.SignInFailed, problem.SecondFactorNeeded},
	}
	sessionDoc = doc{
		id: "get-session", tag: tagSignIn, summary: "Look at this session",
		description: "How it was opened and how long it lasts.",
		answers:     ok("The session.", sampleSession),
	}
	signOutDoc = doc{
		id: "sign-out", tag: tagSignIn, summary: "Sign out",
		description: "The session ends at once. The cookie that is left opens nothing; it only lets the device be known again.",
		answers:     none("Signed out.", cookieSet...),
	}
	freshDoc = doc{
		id: "reauthenticate", tag: tagSignIn, summary: "Prove again who you are",
		description: "What protects the account can be changed for ten minutes after a proof. The session gets a new token.",
		request:     credentialsBody{Password: sampleWords, Code: "123456"},
		answers:     ok("Proven.", sampleSession, cookieSet...),
		codes:       []problem.Code{problem.SignInFailed, problem.SecondFactorNeeded},
	}
	passkeyChallengeDoc = doc{
		id: "passkey-challenge", tag: tagSignIn, summary: "Ask for a challenge to sign in by passkey",
		description: "For navigator.credentials.get, valid for five minutes. It names nobody.",
		answers:     ok("The challenge.", sampleChallenge),
	}
	passkeySignInDoc = doc{
		id: "sign-in-by-passkey", tag: tagSignIn, summary: "Sign in by passkey",
		description: "Without a password. The passkey checks who holds it, so it stands for two factors.",
		request:     passkeySignInBody{Passkey: sampleAnswer},
		answers:     ok("Signed in; the answer sets the cookie.", sampleSession, cookieSet...),
		codes:       []problem.Code{problem.SignInFailed},
	}
	sessionsDoc = doc{
		id: "list-sessions", tag: tagSignIn, summary: "List your sessions",
		description: "The browsers that are signed in, with device, rough place and last use.",
		answers:     ok("The sessions.", sessionsView{Data: []sessionView{sampleSession}}),
	}
	endSessionsDoc = doc{
		id: "end-sessions", tag: tagSignIn, summary: "End all other sessions",
		description: "At once, everywhere. This one stays.",
		answers:     ok("Ended.", endedView{Ended: 2}),
	}
	endSessionDoc = doc{
		id: "end-session", tag: tagSignIn, summary: "End a session",
		description: "At once, everywhere.",
		answers:     none("Ended."),
		codes:       []problem.Code{problem.NotFound},
	}

	keysDoc = doc{
		id: "list-keys", tag: tagKeys, summary: "List your keys",
		description: "By their first letters, with scopes and last use. Those that were revoked or expired are listed for 30 days, the newest 100 of them.",
		answers:     ok("The keys.", keysView{Data: []keyView{sampleKey}}),
	}
	createKeyDoc = doc{
		id: "create-key", tag: tagKeys, summary: "Make a key",
		description: "Named, with some scopes, for ever or until a time. The key is shown once. You are told by mail.",
		request:     createKeyBody{Name: "laptop", Scopes: []string{"generate", "read"}},
		answers:     []good{{status: http.StatusCreated, description: "The key, once.", body: newKeyView{Token: "zi_…", Key: sampleKey}}},
		codes:       []problem.Code{problem.ReauthNeeded, problem.Conflict},
	}
	revokeKeyDoc = doc{
		id: "revoke-key", tag: tagKeys, summary: "Revoke a key",
		description: "It is refused everywhere within five seconds, on open streams too.",
		answers:     none("Revoked."),
		codes:       []problem.Code{problem.NotFound},
	}

	findAccountDoc = doc{
		id: "find-account", tag: tagStaff, summary: "Open somebody's account",
		description: "By mail address, for any role, with a reason. Who opened it and why is kept, and the person sees the role and the reason. Not so with `case`, for a privacy officer who is about to record a disclosure of which they must not learn. A search for an address without an account is kept too, without the address.",
		request:     findBody{Email: "ada@example.com", Reason: "Asked for help with a failed payment, ticket 17."},
		answers:     ok("The account.", sampleAccount),
		codes:       []problem.Code{problem.NotFound},
	}
	suspendDoc = doc{
		id: "suspend-account", tag: tagStaff, summary: "Suspend an account",
		description: "Refuses new work; what is there can still be read and deleted. The person is told the reason. For operators.",
		request:     reasonBody{Reason: "Runs up thousands of jobs with stolen cards."},
		answers:     none("Suspended."),
		codes:       []problem.Code{problem.NotFound},
	}
	unsuspendDoc = doc{
		id: "unsuspend-account", tag: tagStaff, summary: "Lift a suspension",
		description: "For operators. The person is told.",
		request:     reasonBody{Reason: "The appeal was right."},
		answers:     none("Lifted."),
		codes:       []problem.Code{problem.NotFound},
	}
	closeChildDoc = doc{
		id: "close-child-account", tag: tagStaff, summary: "Close the account of a child",
		description: "When it is learned that somebody is under 13: access ends at once and everything is handed over to erasure. For operators.",
		request:     reasonBody{Reason: "A parent wrote, with proof of age."},
		answers:     none("Closed."),
		codes:       []problem.Code{problem.NotFound, problem.ReauthNeeded},
	}
)
