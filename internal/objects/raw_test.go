package objects_test

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"zimage/internal/objects"
	"zimage/internal/testenv"
)

// What a delete marker hides, and what an earlier version holds, is there.
func TestEveryVersionIsShown(t *testing.T) {
	t.Parallel()
	ctx, b := t.Context(), testenv.S3(t)
	client, err := minio.New(b.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(b.AccessKey, b.SecretKey, "")})
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(client.MakeBucket(ctx, b.Bucket, minio.MakeBucketOptions{}))
	must(client.EnableVersioning(ctx, b.Bucket))
	store, err := objects.OpenS3(ctx, objects.S3Options{Endpoint: b.Endpoint, Bucket: b.Bucket, AccessKey: b.AccessKey, SecretKey: b.SecretKey})
	must(err)
	put := func(key, text string) {
		t.Helper()
		_, err := client.PutObject(ctx, b.Bucket, key, bytes.NewReader([]byte(text)), int64(len(text)), minio.PutObjectOptions{UserMetadata: map[string]string{"Note": "beside " + text}})
		must(err)
	}
	put("images/a/one.img", "first")
	put("images/a/one.img", "second")
	must(client.RemoveObject(ctx, b.Bucket, "images/a/one.img", minio.RemoveObjectOptions{}))
	_, err = minio.Core{Client: client}.NewMultipartUpload(ctx, b.Bucket, "exports/a/half.zip", minio.PutObjectOptions{})
	must(err)

	var all strings.Builder
	markers := 0
	must(store.Versions(ctx, func(key string, modified time.Time, open func() (io.ReadCloser, error)) error {
		if modified.IsZero() {
			t.Errorf("%s is of no time", key)
		}
		all.WriteString(key + "\n")
		if open == nil {
			markers++
			return nil
		}
		body, err := open()
		if err != nil {
			return err
		}
		text, err := io.ReadAll(body)
		all.Write(append(text, '\n'))
		return err
	}))
	for _, want := range []string{"\nfirst\n", "\nsecond\n", "beside first", "beside second"} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("%q is not shown: %s", want, &all)
		}
	}
	// The marker, and with MinIO, which lists uploads by their whole key alone, no upload.
	if markers < 1 || strings.Count(all.String(), "images/a/one.img\n") != 3 {
		t.Errorf("%d markers: %s", markers, &all)
	}
}
