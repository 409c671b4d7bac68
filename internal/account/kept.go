package account

// What the policy page says of how long things are kept here.
const (
	SignUpKept = confirmFor // a sign-up that nobody confirms
	DeviceKept = unusedFor  // a browser that is not used
)
