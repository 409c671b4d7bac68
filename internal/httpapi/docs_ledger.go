package httpapi

import (
	"crypto/sha256"

	"zimage/internal/problem"
)

var (
	sampleHash       = sha256.Sum256(nil)
	sampleCheckpoint = checkpointView{At: sampleAt, Hash: sampleHash[:], Signature: make([]byte, 64), PublicKey: make([]byte, 32)}

	ledgerDoc = doc{
		id: "list-ledger", tag: tagAccount, summary: "See what was done with your data",
		description: "Who of the staff opened or changed your account, by role and with the reason; disclosures, unless a case forbids to tell; and your own consents, objections and restrictions. " +
			"An entry is here at once and can no longer be changed unseen within a minute. Names of staff are left out.",
		answers: ok("A page.", ledgerView{
			Data: []ledgerEntryView{{
				ID: "led_06f3k2m9v0q8r5w1x4y7z2a6bc", Kind: "staff.opened", At: sampleAt, Role: "support",
				Reason: "Asked for help with a failed payment, ticket 17.", Sealed: true,
			}},
			NextCursor: "led_06f3k2m9v0q8r5w1x4y7z2a6bc.0f3a…",
		}),
		codes: []problem.Code{problem.InvalidRequest},
	}
	discloseDoc = doc{
		id: "record-disclosure", tag: tagStaff, summary: "Record a disclosure under law",
		description: "That personal data was handed out, to whom and why. For privacy officers. The person sees it, unless the case forbids that. Nothing is handed out by this.",
		request: disclosureBody{Case: "17 Js 204/26", Authority: "Public prosecutor, Lyon", Scope: "mail address and dates of sign-in", MayBeTold: true,
			Reason: "Order of the court of 12 January, checked by our counsel."},
		answers: none("Kept."),
		codes:   []problem.Code{problem.NotFound},
	}
	checkpointDoc = doc{
		id: "get-ledger-checkpoint", tag: tagPrivacy, summary: "Checkpoint of the ledger",
		description: "Signed, for everybody to keep. Whoever holds one can have it compared (`zimage ledger verify --checkpoint FILE`): a ledger that was cut off or written anew since does not fit. " +
			"There is another one for each full hour, some minutes after it, and it says nothing of what the ledger holds, nor whether anything came in.",
		answers: ok("The checkpoint.", sampleCheckpoint),
	}
)
