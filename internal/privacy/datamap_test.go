package privacy

import "testing"

func TestX(t *testing.T) {
	if _, err := DataMap(); err != nil {
		t.Fatal(err)
	}
}
