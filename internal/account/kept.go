package account

// What the policy page says of how long things are kept here.
const (
	SignUpKept = confirmFor // a sign-up that nobody confirms
	DeviceKept = unusedFor  // a browser that is not used
)

// What the data map says beside it.
const (
	KeyKept       = endedFor      // an API key after its end, in the list
	ChallengeKept = challengeLife // what a passkey is to sign
)
