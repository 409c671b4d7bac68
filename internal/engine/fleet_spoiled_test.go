package engine

import "testing"

// Broken pixels behind a good header show only when the picture is decoded.
func TestAnEngineOfBrokenPicturesIsSetAside(t *testing.T) {
	t.Parallel()
	f, _ := fleet(t, map[string]scripted{"a": {}, "b": {}}, settings("a", 1), settings("b", 1))
	spoil := func() string {
		s := acquire(t, f)
		defer s.Release()
		if _, err := s.Generate(t.Context(), Request{Model: painter}, nil); err != nil {
			t.Fatal(err)
		}
		s.Report(s.member.settings.Name == "b")
		return s.member.settings.Name
	}
	if first, second := spoil(), spoil(); first != "a" || second != "b" {
		t.Errorf("given out %s, then %s: the one that spoils less goes first", first, second)
	}
	for range 2 {
		s := &Slot{fleet: f, member: f.members[0]}
		s.Report(false)
	}
	if got := f.Status()[0]; got.State != StateSetAside || got.LastErrorCode != CodeBadImage {
		t.Errorf("it is %+v", got)
	}
	f.probe(t.Context())
	(&Slot{fleet: f, member: f.members[0]}).Report(true)
	if got := f.members[0]; got.aside || got.spoiled != 0 {
		t.Errorf("after a whole picture: %+v", got)
	}
}
