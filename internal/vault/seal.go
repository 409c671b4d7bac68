package vault

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// The format of a sealed object, from Tink's streaming AEAD: a header in front
// of the first segment, and a tag behind each.
const (
	headerSize  = 1 + 32 + 7 // its length, salt, nonce prefix
	segmentSize = 4096       // of ciphertext, the header counted into the first
	tagSize     = 16
)

// SealedSize is the exact size in bytes of a sealed object of plain bytes.
func SealedSize(plain int64) int64 {
	const room = segmentSize - tagSize
	segments := max((plain+headerSize+room-1)/room, 1)
	return headerSize + plain + segments*tagSize
}

// PlainSize is the inverse of SealedSize; 0 for what is too short to be sealed.
func PlainSize(sealed int64) int64 {
	body := sealed - headerSize
	segments := (sealed + segmentSize - 1) / segmentSize
	return max(body-segments*tagSize, 0)
}

// Seal seals a field with the subject's key, bound to data. It costs 33 bytes.
func (v *Vault) Seal(ctx context.Context, subject string, plain, data []byte) ([]byte, error) {
	k, err := v.open(ctx, subject)
	if err != nil {
		return nil, err
	}
	sealed, err := k.field.Encrypt(plain, data)
	if err != nil {
		return nil, errors.New("vault: the field is too large to seal")
	}
	return sealed, nil
}

// Unseal opens what Seal made for the same subject and data, and returns
// ErrCorrupt for anything else.
func (v *Vault) Unseal(ctx context.Context, subject string, sealed, data []byte) ([]byte, error) {
	k, err := v.open(ctx, subject)
	if err != nil {
		return nil, err
	}
	plain, err := k.field.Decrypt(sealed, data)
	if err != nil {
		return nil, ErrCorrupt
	}
	return plain, nil
}

// SealWriter seals an object into w as it is written, in memory that does not
// grow with it. Close ends the object, and only then is it whole: whoever could
// not write all of it must leave the writer unclosed and throw the result away,
// because a closed one opens without an error, only shorter. Close doesn't close
// w.
func (v *Vault) SealWriter(ctx context.Context, subject string, w io.Writer, data []byte) (io.WriteCloser, error) {
	k, err := v.open(ctx, subject)
	if err != nil {
		return nil, err
	}
	sealing, err := k.object.NewEncryptingWriter(w, data)
	if err != nil {
		return nil, fmt.Errorf("seal an object: %w", err)
	}
	return &sealWriter{w: sealing}, nil
}

// sealWriter stays failed: after a lost write, Close must not end the object as
// if it were whole.
type sealWriter struct {
	w   io.WriteCloser
	err error
}

func (s *sealWriter) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.w.Write(p)
	s.err = err
	return n, err
}

func (s *sealWriter) Close() error {
	if s.err != nil {
		return s.err
	}
	if err := s.w.Close(); err != nil {
		s.err = err
		return err
	}
	return nil
}

// UnsealReader opens what SealWriter made for the same subject and data. The
// first segment is read and verified before it returns, so that a wrong key or
// foreign object is ErrCorrupt here. A changed or cut-off rest is ErrCorrupt
// from Read, which by then may have returned authentic bytes from before the
// damage. Errors of r itself come back as they are.
func (v *Vault) UnsealReader(ctx context.Context, subject string, r io.Reader, data []byte) (io.Reader, error) {
	k, err := v.open(ctx, subject)
	if err != nil {
		return nil, err
	}
	source := &source{r: r}
	opening, err := k.object.NewDecryptingReader(source, data)
	if err != nil {
		return nil, errors.New("vault: the object cannot be opened")
	}
	u := &unsealReader{r: opening, source: source, first: make([]byte, segmentSize)}
	n, err := u.r.Read(u.first)
	if err != nil {
		return nil, u.fail()
	}
	u.first = u.first[:n]
	return u, nil
}

// unsealReader stays failed: Tink's reader answers io.EOF after the error about
// a cut-off last segment, which looks like a good end to whoever reads on.
type unsealReader struct {
	r      io.Reader
	source *source
	first  []byte // verified, not yet read
	err    error
}

func (u *unsealReader) Read(p []byte) (int, error) {
	if len(u.first) > 0 {
		n := copy(p, u.first)
		if u.first = u.first[n:]; len(u.first) == 0 {
			u.first = nil
		}
		return n, nil
	}
	if u.err != nil {
		return 0, u.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := u.r.Read(p)
	switch err { // io.EOF itself: a source's error that wraps it is not an end
	case nil:
	case io.EOF:
		u.err = io.EOF
	default:
		u.err = u.fail()
	}
	return n, u.err
}

// fail tells damage from a source that broke off: the first is for good, the
// second may work when tried again.
func (u *unsealReader) fail() error {
	if u.source.err != nil {
		return fmt.Errorf("read a sealed object: %w", u.source.err)
	}
	return ErrCorrupt
}

// source remembers how reading failed. Tink takes an unexpected end for an end
// and swallows what went wrong in the first segment.
type source struct {
	r   io.Reader
	err error // not io.EOF
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}
