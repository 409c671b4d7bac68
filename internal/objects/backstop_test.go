package objects_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/lifecycle"

	"zimage/internal/objects"
	"zimage/internal/testenv"
)

func optionsOf(b testenv.S3Bucket) objects.S3Options {
	return objects.S3Options{Endpoint: b.Endpoint, Bucket: b.Bucket, AccessKey: b.AccessKey, SecretKey: b.SecretKey}
}

// The bucket deletes what nobody else does, by a rule for our prefix alone, and other
// people's rules stay as they are.
func TestPromise_R3_TheBucketHasARuleOfItsOwn(t *testing.T) {
	t.Parallel()
	ctx, b := t.Context(), testenv.S3(t)
	s, err := objects.OpenS3(ctx, optionsOf(b))
	if err != nil {
		t.Fatal(err)
	}
	c, err := minio.New(b.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(b.AccessKey, b.SecretKey, "")})
	if err != nil {
		t.Fatal(err)
	}
	rules := func() map[string]lifecycle.Rule {
		t.Helper()
		all := map[string]lifecycle.Rule{}
		got, err := c.GetBucketLifecycle(ctx, b.Bucket)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range got.Rules {
			all[r.ID] = r
		}
		return all
	}
	look := func(days int, want bool) {
		t.Helper()
		if got, err := objects.LookBackstop(ctx, optionsOf(b), "images/", days); err != nil || got != want {
			t.Errorf("the rule of %d days: %v, %v", days, got, err)
		}
	}
	look(91, false)
	if err := s.Backstop(ctx, "images/", 91); err != nil {
		t.Fatal(err)
	}
	look(91, true)
	look(61, false)
	mine := rules()["zimage-images"]
	if mine.Expiration.Days != 91 || mine.RuleFilter.Prefix != "images/" || mine.Status != "Enabled" || mine.NoncurrentVersionExpiration.NoncurrentDays != 1 {
		t.Errorf("%+v", mine)
	}
	theirs := lifecycle.NewConfiguration()
	theirs.Rules = []lifecycle.Rule{
		{ID: "theirs", Status: "Enabled", Expiration: lifecycle.Expiration{Days: 7},
			RuleFilter: lifecycle.Filter{And: lifecycle.And{Prefix: "other/", Tags: []lifecycle.Tag{{Key: "a", Value: "b & c"}}}}},
		{ID: "images-of-theirs", Status: "Disabled", Expiration: lifecycle.Expiration{Days: 9}, RuleFilter: lifecycle.Filter{Prefix: "x/"}},
		{ID: "zimage-archive-logs", Status: "Enabled", Expiration: lifecycle.Expiration{Days: 11}, RuleFilter: lifecycle.Filter{Prefix: "logs/"}},
		mine,
	}
	if err := c.SetBucketLifecycle(ctx, b.Bucket, theirs); err != nil {
		t.Fatal(err)
	}
	before := rules()
	for range 2 {
		if err := s.Backstop(ctx, "images/", 61); err != nil {
			t.Fatal(err)
		}
	}
	after := rules()
	look(61, true)
	for _, id := range []string{"theirs", "images-of-theirs", "zimage-archive-logs"} {
		if x, y := before[id], after[id]; x.Expiration != y.Expiration || x.Status != y.Status || x.RuleFilter.Prefix != y.RuleFilter.Prefix ||
			x.RuleFilter.And.Prefix != y.RuleFilter.And.Prefix || !slices.Equal(x.RuleFilter.And.Tags, y.RuleFilter.And.Tags) {
			t.Errorf("%+v became %+v", x, y)
		}
	}
	if after["zimage-images"].Expiration.Days != 61 {
		t.Errorf("%+v", after)
	}
}

// A server that knows no rules says so, and is used all the same.
func TestABucketWithoutRules(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	p, b := faulty(t, testenv.S3(t))
	p.everything = true
	s, err := objects.OpenS3(ctx, optionsOf(b))
	if err != nil {
		t.Fatal(err)
	}
	p.with(func(w http.ResponseWriter, r *http.Request) (bool, bool) {
		if !r.URL.Query().Has("lifecycle") {
			return true, false
		}
		w.WriteHeader(http.StatusNotImplemented)
		_, _ = w.Write([]byte(`<Error><Code>NotImplemented</Code><Message>secret</Message></Error>`))
		return false, false
	})
	err = s.Backstop(ctx, "images/", 91)
	if err == nil || !strings.Contains(err.Error(), "NotImplemented") || strings.Contains(err.Error(), "secret") {
		t.Errorf("it says %v", err)
	}
	if err := s.Put(ctx, "images/a/b.img", strings.NewReader("x"), 1); err != nil {
		t.Error(err)
	}
}
