package prove

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// A Canary is a word that nobody else has: wherever it stands, this run has put it.
type Canary string

// NewCanary is one of 80 random bits, in small letters and digits, as every input
// takes them.
func NewCanary() Canary { return Canary("q" + strings.ToLower(rand.Text())[:16]) }

// With is the canary with the name of the input that it is sent through.
func (c Canary) With(input string) string { return string(c) + input }

// addresses are the network addresses from which the canary's person comes. Nobody
// else has them, and each is written in one way alone. The first is of loopback, whose
// whole network every machine with Linux has.
func (c Canary) addresses() (four, six netip.Addr) {
	sum := sha256.Sum256([]byte(c))
	a, b := [4]byte{127}, [16]byte{0x20, 0x01, 0x0d, 0xb8}
	for i := 1; i < len(a); i++ {
		a[i] = 100 + sum[i]%150
	}
	for i := 4; i < len(b); i++ {
		b[i] = 0x10 | sum[i] // with no zero that could be left out
	}
	return netip.AddrFrom4(a), netip.AddrFrom16(b)
}

// A Kind is how a canary is written.
type Kind string

// The kinds. What is encrypted holds none of them.
const (
	Plain      Kind = "plain"
	Hex        Kind = "hex"
	Percent    Kind = "percent"
	UTF16      Kind = "utf-16"
	Base64     Kind = "base64"
	Base64One  Kind = "base64, one byte on"
	Base64Two  Kind = "base64, two bytes on"
	IPv4       Kind = "IPv4 address" // not the word: where it comes from
	IPv6       Kind = "IPv6 address"
	Compressed Kind = "compressed"
)

// Kinds are all of them; textual ones fit into any text.
var (
	Kinds   = []Kind{Plain, Hex, Percent, Base64, Base64One, Base64Two, IPv4, IPv6, UTF16, Compressed}
	textual = Kinds[:8]
)

// Encode is the canary in one of the kinds, with something before and behind it.
func (c Canary) Encode(k Kind) []byte {
	text := "..." + string(c) + "..."
	four, six := c.addresses()
	switch k {
	case IPv4:
		return []byte(four.String() + ":50000")
	case IPv6:
		return []byte("[" + six.String() + "]:50000")
	case Hex:
		return []byte(hex.EncodeToString([]byte(text)))
	case Percent:
		return []byte(percent(text))
	case UTF16:
		return utf16(text)
	case Base64:
		return []byte(base64.StdEncoding.EncodeToString([]byte(text)))
	case Base64One:
		return []byte(base64.StdEncoding.EncodeToString([]byte("." + text)))
	case Base64Two:
		return []byte(base64.StdEncoding.EncodeToString([]byte(".." + text)))
	case Compressed:
		var b bytes.Buffer
		w := zlib.NewWriter(&b)
		_, _ = w.Write([]byte(text)) // memory takes it
		_ = w.Close()
		return b.Bytes()
	}
	return []byte(text)
}

func percent(text string) string {
	var b strings.Builder
	for i := range len(text) {
		fmt.Fprintf(&b, "%%%02x", text[i])
	}
	return b.String()
}

// utf16 begins with the first letter and ends with the last, so that the order of
// the two bytes makes no difference to who looks for it.
func utf16(text string) []byte { return []byte(strings.Join(strings.Split(text, ""), "\x00")) }

// inBase64 is what stands in every base64 of a text with word at an offset, as
// far as the neighbours have no say in it.
func inBase64(word string, offset int) []byte {
	encoded := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("\x00", offset) + word))
	first := (offset*8 + 5) / 6
	last := (offset + len(word)) * 8 / 6
	return []byte(encoded[first:last])
}

// finder knows a canary in everything that it may be written as.
type finder struct {
	canary Canary
	folded map[Kind][]byte // looked for in small letters
	exact  map[Kind][]byte
	zip    io.ReadCloser // a deflate reader, used again and again
	small  []byte        // a block in small letters
}

func newFinder(c Canary) *finder {
	word := string(c)
	four, six := c.addresses()
	return &finder{
		canary: c,
		folded: map[Kind][]byte{Plain: []byte(word), Hex: []byte(hex.EncodeToString([]byte(word))), Percent: []byte(percent(word)),
			UTF16: utf16(word), IPv4: []byte(four.String()), IPv6: []byte(six.String())},
		// "..." goes before the word where it is planted; anywhere else it may stand at
		// any of the three offsets.
		exact: map[Kind][]byte{Base64: inBase64(word, 0), Base64One: inBase64(word, 1), Base64Two: inBase64(word, 2)},
		zip:   flate.NewReader(nil),
	}
}

const (
	block = 1 << 20
	// carry is what is looked at again with the next block: more than any canary, and
	// as much of something compressed as is looked into.
	carry = 64 << 10
	// inflated is how much of something compressed is looked into.
	inflated = 1 << 20
)

// A hit is how a canary was written, and through which input it was sent, where
// that can be told.
type hit struct {
	kind  Kind
	input string
}

// search reads r to its end and tells each hit. It returns how many bytes it read.
func (f *finder) search(r io.Reader, inputs []string, tell func(hit)) (total int64, err error) {
	buf := make([]byte, 0, block+carry)
	for {
		old := len(buf)
		n, err := io.ReadFull(r, buf[old:cap(buf)])
		buf = buf[:old+n]
		total += int64(n)
		end := err != nil
		f.block(buf, old, end, inputs, tell)
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF: //nolint:errorlint // ReadFull returns these two as they are
			return total, nil
		case err != nil:
			return total, err
		}
		buf = buf[:copy(buf, buf[len(buf)-carry:])]
	}
}

// block looks through b, whose first seen bytes were in the block before. What is
// compressed is looked into where its beginning cannot come again.
func (f *finder) block(b []byte, seen int, last bool, inputs []string, tell func(hit)) {
	f.plainly(b, seen, inputs, tell)
	for at := range b {
		if !last && at >= len(b)-carry { // it comes again, with more behind it
			return
		}
		if packs[b[at]] {
			f.inflate(b[at:], inputs, tell)
		}
	}
}

// packs are the first bytes of whatever inflate knows.
var packs = func() (all [256]bool) {
	for _, b := range []byte{0x08, 0x18, 0x28, 0x38, 0x48, 0x58, 0x68, 0x78, 0x1f, 'P', 0xc3} {
		all[b] = true
	}
	return all
}()

// plainly finds what ends behind the first seen bytes.
func (f *finder) plainly(b []byte, seen int, inputs []string, tell func(hit)) {
	f.small = append(f.small[:0], b...)
	for i, c := range f.small {
		if 'A' <= c && c <= 'Z' {
			f.small[i] = c + 'a' - 'A'
		}
	}
	for _, all := range []struct {
		in    []byte
		words map[Kind][]byte
	}{{f.small, f.folded}, {b, f.exact}} {
		for kind, word := range all.words {
			for at := 0; ; {
				i := bytes.Index(all.in[at:], word)
				if i < 0 {
					break
				}
				at += i + len(word)
				if at > seen {
					h := hit{kind: kind}
					if kind == Plain {
						h.input = inputAt(all.in[at:], inputs)
					}
					tell(h)
				}
			}
		}
	}
}

// inputAt is the longest input whose name b begins with.
func inputAt(b []byte, inputs []string) (found string) {
	for _, input := range inputs {
		if len(input) > len(found) && bytes.HasPrefix(b, []byte(input)) {
			found = input
		}
	}
	return found
}

// inflate looks into b if something compressed seems to begin there: zlib, as in a
// PNG; gzip; an entry of a ZIP; or a text in a dump of Redis.
func (f *finder) inflate(b []byte, inputs []string, tell func(hit)) {
	if len(b) < 8 {
		return
	}
	var packed io.Reader
	switch {
	case isZlib(b[0], b[1]):
		packed = bytes.NewReader(b[2:])
	case b[0] == 0x1f && b[1] == 0x8b && b[2] == 8:
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return
		}
		text, _ := io.ReadAll(io.LimitReader(z, inflated)) // as far as it goes
		f.unpacked(text, inputs, tell)
		return
	case len(b) > 30 && bytes.HasPrefix(b, []byte("PK\x03\x04")) && b[8] == 8:
		skip := 30 + int(binary.LittleEndian.Uint16(b[26:])) + int(binary.LittleEndian.Uint16(b[28:]))
		if skip >= len(b) {
			return
		}
		packed = bytes.NewReader(b[skip:])
	case b[0] == 0xc3:
		f.unpacked(lzf(b[1:]), inputs, tell)
		return
	default:
		return
	}
	if f.zip.(flate.Resetter).Reset(packed, nil) != nil {
		return
	}
	text, _ := io.ReadAll(io.LimitReader(f.zip, inflated))
	f.unpacked(text, inputs, tell)
}

// lzf is a text as Redis compresses it in a dump, behind its two lengths; nothing when
// it is none.
func lzf(b []byte) []byte {
	var length [2]int // packed and unpacked
	for i := range length {
		switch {
		case len(b) < 5:
			return nil
		case b[0]>>6 == 0:
			length[i], b = int(b[0]), b[1:]
		case b[0]>>6 == 1:
			length[i], b = int(b[0]&0x3f)<<8|int(b[1]), b[2:]
		case b[0] == 0x80:
			length[i], b = int(binary.BigEndian.Uint32(b[1:])), b[5:]
		default:
			return nil
		}
	}
	if length[0] >= length[1] || length[0] > len(b) || length[1] > inflated {
		return nil
	}
	var text []byte
	for b = b[:length[0]]; len(b) > 0; {
		n := int(b[0]) >> 5
		if n == 0 { // so many as they are
			n, b = int(b[0])+1, b[1:]
			if n > len(b) {
				return nil
			}
			text, b = append(text, b[:n]...), b[n:]
			continue
		}
		high, low := int(b[0]&0x1f)<<8, 1
		if n == 7 && len(b) > 1 { // a long one
			n, low = n+int(b[1]), 2
		}
		if low >= len(b) {
			return nil
		}
		from := len(text) - high - int(b[low]) - 1
		if n += 2; from < 0 || len(text)+n > length[1] {
			return nil
		}
		for i := range n { // it may go on into what it makes
			text = append(text, text[from+i])
		}
		b = b[low+1:]
	}
	return text
}

// isZlib knows the beginnings that are in use: a window of 32 KiB at any level, and
// the smaller ones that PNG has for little text.
func isZlib(first, second byte) bool {
	switch first {
	case 0x78:
		return second == 0x01 || second == 0x5e || second == 0x9c || second == 0xda
	case 0x08, 0x18, 0x28, 0x38, 0x48, 0x58, 0x68:
		return second < 0x20 && (int(first)<<8|int(second))%31 == 0
	}
	return false
}

func (f *finder) unpacked(text []byte, inputs []string, tell func(hit)) {
	f.plainly(text, 0, inputs, func(h hit) { tell(hit{Compressed, h.input}) })
}
