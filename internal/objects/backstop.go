package objects

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // S3 asks for it, as a checksum
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
)

// ruleName begins the names of our rules in a bucket. Others may begin so too: ours
// are those that are named in full as ours are.
const ruleName = "zimage-"

// uploads are what streams may leave parts of.
const uploads = "exports/"

// bucketRule is one of a bucket's rules, as far as ours go.
type bucketRule struct {
	ID         string `xml:"ID"`
	Prefix     string `xml:"Filter>Prefix"`
	Status     string `xml:"Status"`
	Days       int    `xml:"Expiration>Days"`
	Noncurrent int    `xml:"NoncurrentVersionExpiration>NoncurrentDays"`
	Abort      int    `xml:"AbortIncompleteMultipartUpload>DaysAfterInitiation"`
	raw        string // as the bucket has it; empty: it is one that we make
}

func (r bucketRule) text() string {
	if r.raw != "" {
		return "<Rule>" + r.raw + "</Rule>"
	}
	var does strings.Builder
	if r.Days > 0 {
		fmt.Fprintf(&does, "<Expiration><Days>%d</Days></Expiration>", r.Days)
	}
	if r.Noncurrent > 0 {
		fmt.Fprintf(&does, "<NoncurrentVersionExpiration><NoncurrentDays>%d</NoncurrentDays></NoncurrentVersionExpiration>", r.Noncurrent)
	}
	if r.Abort > 0 {
		fmt.Fprintf(&does, "<AbortIncompleteMultipartUpload><DaysAfterInitiation>%d</DaysAfterInitiation></AbortIncompleteMultipartUpload>", r.Abort)
	}
	return fmt.Sprintf("<Rule><ID>%s</ID><Status>%s</Status><Filter><Prefix>%s</Prefix></Filter>%s</Rule>", r.ID, r.Status, r.Prefix, does.String())
}

func (r bucketRule) same(other bucketRule) bool {
	r.raw, other.raw = "", ""
	return r == other
}

// ours are the rules that the service wants.
func ours(prefix string, days int) (expiry, abort bucketRule) {
	name := ruleName + strings.Trim(prefix, "/")
	return bucketRule{ID: name, Prefix: prefix, Status: "Enabled", Days: days, Noncurrent: 1},
		bucketRule{ID: ruleName + "uploads", Prefix: uploads, Status: "Enabled", Abort: 1}
}

// Backstop is described at Store. Rules that are not ours stay as they are, to the
// letter.
func (s *S3) Backstop(ctx context.Context, prefix string, days int) error {
	if err := s.prove(ctx, "backstop"); err != nil {
		return err
	}
	there, err := s.rules(ctx)
	if err != nil {
		return err
	}
	expiry, abort := ours(prefix, days)
	wanted := []bucketRule{expiry, abort}
	if has(there, wanted...) {
		return nil
	}
	others := slices.DeleteFunc(slices.Clone(there), func(r bucketRule) bool { return r.ID == expiry.ID || r.ID == abort.ID })
	err = s.setRules(ctx, append(slices.Clone(others), wanted...))
	if err == nil || IsAway(err) {
		return err
	}
	// Servers that drop parts by themselves may know no such rule.
	if has(there, expiry) {
		return nil
	}
	return s.setRules(ctx, append(others, expiry))
}

func has(there []bucketRule, wanted ...bucketRule) bool {
	for _, w := range wanted {
		if !slices.ContainsFunc(there, w.same) {
			return false
		}
	}
	return true
}

// LookBackstop reports whether the bucket has the rule that Backstop would make. It
// changes nothing.
func LookBackstop(ctx context.Context, o S3Options, prefix string, days int) (bool, error) {
	core, err := o.core()
	if err != nil {
		return false, err
	}
	transport, err := o.transport()
	if err != nil {
		return false, err
	}
	ctx, stop := context.WithTimeout(ctx, proofTime)
	defer stop()
	there, err := (&S3{core: *core, bucket: o.Bucket, plain: &http.Client{Transport: transport}}).rules(ctx)
	expiry, _ := ours(prefix, days)
	return has(there, expiry), err
}

func (s *S3) rules(ctx context.Context) ([]bucketRule, error) {
	text, err := s.lifecycle(ctx, http.MethodGet, nil)
	if codeOf(err) == "NoSuchLifecycleConfiguration" {
		return nil, nil
	}
	if err != nil {
		return nil, s3Error("backstop", err)
	}
	var answer struct {
		Rules []struct {
			bucketRule
			Raw string `xml:",innerxml"`
		} `xml:"Rule"`
	}
	if err := xml.Unmarshal(text, &answer); err != nil {
		return nil, &Error{Op: "backstop", Code: "the bucket's rules do not parse", err: err}
	}
	var all []bucketRule
	for _, r := range answer.Rules {
		r.raw = r.Raw
		all = append(all, r.bucketRule)
	}
	return all, nil
}

func (s *S3) setRules(ctx context.Context, all []bucketRule) error {
	var b bytes.Buffer
	b.WriteString(`<LifecycleConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`)
	for _, r := range all {
		b.WriteString(r.text())
	}
	b.WriteString(`</LifecycleConfiguration>`)
	_, err := s.lifecycle(ctx, http.MethodPut, b.Bytes())
	return s3Error("backstop", err)
}

// lifecycle is a request of our own: minio-go drops of a bucket's rules what it does
// not know.
func (s *S3) lifecycle(ctx context.Context, method string, body []byte) ([]byte, error) {
	address, err := s.core.Presign(ctx, method, s.bucket, "", time.Minute, url.Values{"lifecycle": {""}})
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, method, address.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		sum := md5.Sum(body) //nolint:gosec // as above
		request.Header.Set("Content-MD5", base64.StdEncoding.EncodeToString(sum[:]))
	}
	response, err := s.plain.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(response.Body, 4<<20)) // a thousand rules are the most
	if err != nil {
		return nil, err
	}
	if response.StatusCode >= 300 {
		refused := minio.ErrorResponse{StatusCode: response.StatusCode}
		_ = xml.Unmarshal(text, &refused)
		return nil, refused
	}
	return text, nil
}

// Backstop is described at Store: a folder has no rules.
func (d *Directory) Backstop(context.Context, string, int) error { return nil }
