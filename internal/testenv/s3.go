package testenv

import (
	"context"
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3Bucket says where a test's bucket is. The server speaks plain HTTP.
type S3Bucket struct {
	Endpoint  string // host:port
	AccessKey string
	SecretKey string
	Bucket    string // of this test alone; nobody has made it yet
}

// S3 is a fresh bucket name on the shared server. A bucket by that name is
// removed with all it holds when the test ends.
func S3(t testing.TB) S3Bucket {
	t.Helper()
	return S3At(t, variable(t, S3Variable))
}

// S3At is S3 on a server that the test started.
func S3At(t testing.TB, address string) S3Bucket {
	t.Helper()
	b, err := parseS3(address)
	if err != nil {
		t.Fatal(err)
	}
	b.Bucket = uniqueName("zimage-test", "-")
	t.Cleanup(func() {
		if err := b.remove(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func parseS3(address string) (S3Bucket, error) {
	u, err := url.Parse(address)
	if err != nil {
		return S3Bucket{}, err
	}
	secret, ok := u.User.Password()
	if !ok || u.Scheme != "http" {
		return S3Bucket{}, errors.New("an S3 server for tests is http://ACCESS:SECRET@HOST:PORT")
	}
	return S3Bucket{Endpoint: u.Host, AccessKey: u.User.Username(), SecretKey: secret}, nil
}

// client has no retries: a server that is starting is asked again anyway.
func (b S3Bucket) client() (*minio.Client, error) {
	return minio.New(b.Endpoint, &minio.Options{
		Creds:      credentials.NewStaticV4(b.AccessKey, b.SecretKey, ""),
		MaxRetries: 1,
	})
}

func (b S3Bucket) remove() error {
	c, err := b.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err = c.RemoveBucketWithOptions(ctx, b.Bucket, minio.RemoveBucketOptions{ForceDelete: true})
	if code := minio.ToErrorResponse(err).Code; code == minio.NoSuchBucket {
		return nil
	}
	return err
}
