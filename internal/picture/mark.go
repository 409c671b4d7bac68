package picture

import (
	"bytes"
	"encoding/xml"
	"strings"
)

const (
	xmpNamespace = "http://ns.adobe.com/xap/1.0/\x00"
	sourceTypes  = "http://cv.iptc.org/newscodes/digitalsourcetype/"

	// maxDescription keeps the packet inside the one segment that a JPEG allows
	// for it (65,502 bytes). No model reads a prompt that long.
	maxDescription = 60_000
)

// xmp is the mark: the packet that says how the picture came to be, and the
// prompt when its owner wants it there.
func xmp(sourceType, prompt string) []byte {
	var b bytes.Buffer
	b.WriteString("<?xpacket begin=\"\ufeff\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>" +
		`<x:xmpmeta xmlns:x="adobe:ns:meta/">` +
		`<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">` +
		`<rdf:Description rdf:about=""` +
		` xmlns:dc="http://purl.org/dc/elements/1.1/"` +
		` xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">` +
		`<Iptc4xmpExt:DigitalSourceType>` + sourceTypes + sourceType + `</Iptc4xmpExt:DigitalSourceType>`)
	if prompt != "" {
		b.WriteString(`<dc:description><rdf:Alt><rdf:li xml:lang="x-default">`)
		b.WriteString(escaped(prompt))
		b.WriteString(`</rdf:li></rdf:Alt></dc:description>`)
	}
	b.WriteString(`</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>`)
	return b.Bytes()
}

// escaped is text for XML, cut between two characters when it is too long.
// What XML cannot hold becomes U+FFFD.
func escaped(text string) string {
	var b strings.Builder
	for _, r := range text {
		var one strings.Builder
		_ = xml.EscapeText(&one, []byte(string(r))) // a Builder takes everything
		if b.Len()+one.Len() > maxDescription {
			break
		}
		b.WriteString(one.String())
	}
	return b.String()
}
