package httpapi

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/image/webp"

	"zimage/internal/clock"
	"zimage/internal/generate"
	"zimage/internal/jobs"
	"zimage/internal/testenv"
)

const imagesPath = "/v1/images/generations"

// images asks as OpenAI's clients do, and lets the engine finish n of them.
func (r *rig) images(n int, key, body string, headers ...string) answered {
	r.t.Helper()
	done := make(chan answered)
	go func() { done <- r.do("POST", imagesPath, key, body, headers...) }()
	for range n {
		r.pass()
	}
	return <-done
}

// made counts the generations of everybody.
func (r *rig) made() (n int) {
	r.t.Helper()
	if err := r.db.Get(context.Background(), &n, `SELECT count(*) FROM generations`); err != nil {
		r.t.Fatal(err)
	}
	return n
}

type openAIAnswer struct {
	Created int64
	Data    []struct {
		B64           string `json:"b64_json"`
		URL           string
		RevisedPrompt *string `json:"revised_prompt"`
	}
	Background, Quality, Size string
	Format                    string `json:"output_format"`
	Usage                     struct {
		Total *int `json:"total_tokens"`
	}
}

func (a answered) images(t *testing.T) (v openAIAnswer) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), &v); err != nil || a.status != 200 {
		t.Fatalf("%d %s (%v)", a.status, a.body, err)
	}
	return v
}

func TestOpenAIImages(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		a := r.images(2, r.ada, `{"prompt":"`+secret+`","n":2,"size":"64x64","quality":"low","background":"transparent","moderation":"low","style":"vivid",
			"user":"somebody-1234","response_format":null,"model":null,"stream":false,"partial_images":null,"output_format":null,"output_compression":null,"seed":null}`)
		v := a.images(t)
		if len(v.Data) != 2 || v.Created == 0 || v.Background != "opaque" || v.Quality != "low" || v.Size != "64x64" || v.Format != "png" || v.Usage.Total == nil {
			t.Errorf("%+v", v)
		}
		list := r.do("GET", "/v1/generations", r.ada, "")
		if list.field(t, "data.steps") != float64(generateModel(r).DefaultSteps/2) || strings.Contains(list.body, "somebody-1234") {
			t.Errorf("%s", list.body)
		}
		var g struct {
			Data []struct {
				Images []struct{ URL string }
			}
		}
		if err := json.Unmarshal([]byte(list.body), &g); err != nil {
			t.Fatal(err)
		}
		for i, image := range v.Data {
			file, err := base64.StdEncoding.DecodeString(image.B64)
			if want := r.do("GET", g.Data[0].Images[i].URL, r.ada, ""); err != nil || string(file) != want.body || image.URL != "" || image.RevisedPrompt != nil {
				t.Errorf("image %d is another one (%v)", i, err)
			}
		}
		for _, name := range []string{"X-Request-Id", "X-Ratelimit-Limit-Requests", "X-Ratelimit-Remaining-Requests", "X-Ratelimit-Reset-Requests"} {
			if a.Header.Get(name) == "" {
				t.Errorf("no %s in %v", name, a.Header)
			}
		}

		a = r.images(1, r.ada, `{"prompt":"p","size":"64x64","response_format":"url","model":"auto","output_format":"jpeg","output_compression":10,"num_inference_steps":3,"guidance_scale":0,"seed":7}`)
		v = a.images(t)
		if len(v.Data) != 1 || v.Data[0].B64 != "" || v.Format != "jpeg" || strings.Contains(v.Data[0].URL, r.ada) {
			t.Fatalf("%s", a.body)
		}
		if file := r.do("GET", v.Data[0].URL, "", ""); file.status != 200 || file.Header.Get("Content-Type") != "image/jpeg" {
			t.Errorf("%d %v", file.status, file.Header)
		}
		list = r.do("GET", "/v1/generations", r.ada, "")
		if list.field(t, "data.steps") != float64(3) || list.field(t, "data.seed") != float64(7) {
			t.Errorf("%s", list.body)
		}
		r.quiet()
		if strings.Contains(r.log.String(), "somebody-1234") {
			t.Error("the user is logged")
		}
	})
}

// What is called quality is how many steps the engine is asked for.
func TestOpenAIQualityIsSteps(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		m := generateModel(r)
		usual, most := m.DefaultSteps, min(2*m.DefaultSteps, m.MaxSteps)
		if usual < 2 || most <= usual {
			t.Fatalf("with %d to %d steps nothing can be told", usual, m.MaxSteps)
		}
		for quality, want := range map[string]struct {
			steps int
			told  string
		}{
			`null`: {usual, "medium"}, `"auto"`: {usual, "medium"}, `"medium"`: {usual, "medium"}, `"standard"`: {usual, "medium"},
			`"low"`: {usual / 2, "low"}, `"high"`: {most, "high"}, `"hd"`: {most, "high"},
			`"hd","num_inference_steps":1`: {1, "high"},
		} {
			v := r.images(1, r.ada, `{"prompt":"p","size":"64x64","quality":`+quality+`}`).images(t)
			if got := r.asked().Steps; got != want.steps || v.Quality != want.told {
				t.Errorf("%s: %d steps, called %s; want %d, %s", quality, got, v.Quality, want.steps, want.told)
			}
		}
	})
}

// A JPEG of the same picture is smaller the more it is compressed; a WebP loses
// nothing, and is the same.
func TestOpenAICompression(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		file := func(format string, compression int) []byte {
			t.Helper()
			v := r.images(1, r.ada, fmt.Sprintf(`{"prompt":"p","size":"128x128","seed":7,"output_format":"%s","output_compression":%d}`, format, compression)).images(t)
			data, err := base64.StdEncoding.DecodeString(v.Data[0].B64)
			if err != nil || v.Format != format || http.DetectContentType(data) != "image/"+format {
				t.Fatalf("%v: %s of %s", err, v.Format, http.DetectContentType(data))
			}
			return data
		}
		least, some, most := file("jpeg", 100), file("jpeg", 50), file("jpeg", 0)
		if len(least) <= len(some) || len(some) <= len(most) {
			t.Errorf("%d, %d and %d bytes at 100, 50 and 0", len(least), len(some), len(most))
		}
		for _, format := range []string{"png", "webp"} {
			if !bytes.Equal(file(format, 100), file(format, 0)) {
				t.Errorf("a %s is another one", format)
			}
		}
	})
}

// From the engine to its deletion.
func TestWebPFromBeginningToEnd(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		b.want(200, "PATCH", "/v1/account", `{"preferences":{"format":"webp"}}`)
		key := b.want(201, "POST", "/v1/keys", `{"scopes":["generate","read"]}`).text(t, "token")
		v := r.images(1, key, `{"prompt":"`+secret+`","size":"64x128","output_format":"webp"}`).images(t)
		file, err := base64.StdEncoding.DecodeString(v.Data[0].B64)
		if err != nil || v.Format != "webp" || v.Size != "64x128" {
			t.Fatalf("%+v (%v)", v, err)
		}
		if size, err := webp.DecodeConfig(bytes.NewReader(file)); err != nil || size.Width != 64 || size.Height != 128 {
			t.Errorf("%+v %v", size, err)
		}
		if bytes.Contains(file, []byte(secret)) || !bytes.Contains(file, []byte("DigitalSourceType")) {
			t.Error("the prompt stands in the file, or the mark does not")
		}
		list := r.do("GET", "/v1/generations", key, "")
		image := list.text(t, "data.images.id")
		if list.field(t, "data.format") != "webp" || list.field(t, "data.images.format") != "webp" {
			t.Errorf("%s", list.body)
		}
		links := r.do("POST", "/v1/images/"+image+"/links", key, `{}`)
		for path, key := range map[string]string{"/v1/images/" + image + "/content": key, links.text(t, "url"): ""} {
			a := r.do("GET", path, key, "")
			if a.body != string(file) || a.Header.Get("Content-Type") != "image/webp" || a.Header.Get("Content-Disposition") != `inline; filename="`+image+`.webp"` {
				t.Errorf("%s: %d %v", path, a.status, a.Header)
			}
		}
		// By the API of ours, as it was preferred, with the prompt in it.
		done := r.do("POST", "/v1/generations", key, `{"prompt":"`+secret+`","width":64,"height":64,"embed_prompt":true}`)
		r.pass()
		done = r.do("GET", "/v1/generations/"+done.text(t, "id"), key, "", "Prefer", "wait=30")
		told := r.do("GET", done.text(t, "images.url"), key, "")
		if done.field(t, "format") != "webp" || told.Header.Get("Content-Type") != "image/webp" || !strings.Contains(told.body, secret) {
			t.Errorf("%s: %v", done.body, told.Header)
		}

		content := b.want(200, "GET", b.ready()+"/content", "")
		archive, err := zip.NewReader(strings.NewReader(content.body), int64(len(content.body)))
		if err != nil {
			t.Fatal(err)
		}
		f, err := archive.Open("content/images/" + image + ".webp")
		if err != nil {
			t.Fatal(err)
		}
		if data, err := io.ReadAll(f); err != nil || !bytes.Equal(data, file) {
			t.Errorf("another picture in the export (%v)", err)
		}

		objects := func() int {
			list, err := r.objects.List(t.Context(), "images/", "", 10)
			if err != nil {
				t.Fatal(err)
			}
			return len(list)
		}
		if n := objects(); n != 4 {
			t.Errorf("%d objects", n)
		}
		if a := r.do("DELETE", "/v1/images/"+image, key, ""); a.status != 204 {
			t.Fatal(a.status, a.body)
		}
		if a := r.do("GET", "/v1/images/"+image+"/content", key, ""); a.status != 410 {
			t.Errorf("deleted: %d", a.status)
		}
		testenv.Eventually(t, time.Minute, func() bool { return objects() == 2 })
	})
}

func generateModel(r *rig) generate.Model {
	m, _ := r.options.Generate.Choose("", generate.Defaults{})
	return m
}

func TestPromise_A3_PreferencesCountForOpenAIsClients(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		b.want(200, "PATCH", "/v1/account", `{"preferences":{"model":"illustrator","width":128,"height":64,"n":2,"format":"jpeg"}}`)
		key := b.want(201, "POST", "/v1/keys", `{"scopes":["generate","read"]}`).text(t, "token")
		for _, size := range []string{``, `,"size":"auto"`} {
			v := r.images(2, key, `{"prompt":"p"`+size+`}`).images(t)
			if len(v.Data) != 2 || v.Size != "128x64" || v.Format != "jpeg" {
				t.Errorf("%s: %+v", size, v)
			}
		}
		if m, known := r.options.Generate.Choose("", generate.Defaults{Model: secondModel}); !known || m.ID != secondModel {
			t.Errorf("a request without a model gets %s", m.ID)
		}
		if v := r.images(1, key, `{"prompt":"p","size":"64x64","n":1,"output_format":"png","model":"illustrator"}`).images(t); len(v.Data) != 1 || v.Size != "64x64" || v.Format != "png" {
			t.Errorf("what was asked for: %+v", v)
		}
	})
}

func TestOpenAIErrors(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		for body, want := range map[string][3]string{ // status, type, param
			`{"prompt":"p","model":"dall-e-3"}`:                              {"404", "invalid_request_error", "model"},
			`{"prompt":"p","n":11}`:                                          {"400", "invalid_request_error", "n"},
			`{"prompt":"p","size":"big"}`:                                    {"400", "invalid_request_error", "size"},
			`{"prompt":"p","size":"64x0"}`:                                   {"400", "invalid_request_error", "size"},
			`{"prompt":"p","output_format":"gif"}`:                           {"400", "invalid_request_error", "output_format"},
			`{"prompt":"p","output_format":"webp","output_compression":101}`: {"400", "invalid_request_error", "output_compression"},
			`{"prompt":"p","quality":"best"}`:                                {"400", "invalid_request_error", "quality"},
			`{"prompt":" "}`:                                                 {"400", "invalid_request_error", "prompt"},
			`{"prompt":null}`:                                                {"400", "invalid_request_error", "prompt"},
			`{}`:                                                             {"400", "invalid_request_error", "prompt"},
			`{"prompt":"p","output_compression":-1}`:                         {"400", "invalid_request_error", "output_compression"},
			`{"prompt":"p","unheard_of":"` + secret + `"}`:                   {"400", "invalid_request_error", ""},
			`nonsense`: {"400", "invalid_request_error", ""},
		} {
			a := r.do("POST", imagesPath, r.ada, body)
			param, _ := a.field(t, "error.param").(string)
			if got := [3]string{fmt.Sprint(a.status), a.text(t, "error.type"), param}; got != want {
				t.Errorf("%s: %v, want %v", body, got, want)
			}
			if a.field(t, "code") != a.field(t, "error.code") || a.text(t, "error.message") == "" || a.Header.Get("Content-Type") != problemJSON || strings.Contains(a.body, secret) {
				t.Errorf("%s: %v %s", body, a.Header, a.body)
			}
		}
		for what, a := range map[string]answered{
			"a wrong key": r.do("POST", imagesPath, "zi_nobody", `{"prompt":"p"}`), "no key": r.do("POST", imagesPath, "", `{"prompt":"p"}`), "of models": r.do("GET", "/v1/models", "zi_nobody", ""),
		} {
			if a.status != 401 || a.field(t, "error.type") != "authentication_error" || a.field(t, "error.code") != "unauthorized" {
				t.Errorf("%s: %d %s", what, a.status, a.body)
			}
		}
		if a := r.do("POST", imagesPath, r.readOnly, `{"prompt":"p"}`); a.status != 403 || a.field(t, "error.type") != "permission_error" {
			t.Errorf("%d %s", a.status, a.body)
		}
		if a := r.do("POST", "/v1/generations", r.ada, `{}`); a.field(t, "error") != nil {
			t.Errorf("elsewhere: %s", a.body)
		}
		if n := r.made(); n != 0 {
			t.Errorf("%d generations were made of what was refused", n)
		}

		// What ends without a picture is an error that no client is to repeat.
		done := make(chan answered)
		go func() { done <- r.do("POST", imagesPath, r.ada, `{"prompt":"p","size":"64x64"}`) }()
		id := r.running(r.ada)
		if a := r.do("POST", "/v1/generations/"+id+"/cancel", r.ada, ""); a.status != 200 {
			t.Fatal(a.status, a.body)
		}
		if a := <-done; a.status != 502 || a.field(t, "code") != "generation_failed" || a.Header.Get("X-Should-Retry") != "false" || a.field(t, "error.type") != "server_error" {
			t.Errorf("canceled: %d %v %s", a.status, a.Header, a.body)
		}
	})
}

// running waits until the newest generation of the key's owner runs.
func (r *rig) running(key string) (id string) {
	r.t.Helper()
	testenv.Eventually(r.t, 20e9, func() bool {
		a := r.do("GET", "/v1/generations?status=running", key, "")
		if a.field(r.t, "data.id") == nil {
			return false
		}
		id = a.text(r.t, "data.id")
		return true
	})
	return id
}

func TestOpenAIRetriesMakeNoSecondPicture(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		const body, again = `{"prompt":"p","size":"64x64"}`, "X-Stainless-Retry-Count"
		b64 := func(a answered) string { t.Helper(); return a.images(t).Data[0].B64 }
		// A client that gave up, while it ran.
		ctx, giveUp := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "POST", r.url+imagesPath, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+r.ada)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set(again, "0")
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			if res, err := http.DefaultClient.Do(req); err == nil {
				_ = res.Body.Close()
				t.Error("it was answered")
			}
		}()
		r.running(r.ada)
		giveUp()
		<-gone
		first := b64(r.images(1, r.ada, `{"size":"64x64", "prompt":"p", "user":"another"}`, again, "1"))
		if n := r.made(); n != 1 {
			t.Fatalf("%d generations, want 1", n)
		}
		if got := b64(r.do("POST", imagesPath, r.ada, body, again, "2")); got != first || r.made() != 1 {
			t.Errorf("another picture, of %d", r.made())
		}
		// Pressing twice makes two, of which the newest is what is repeated.
		second := b64(r.images(1, r.ada, body, again, "0"))
		if got := b64(r.do("POST", imagesPath, r.ada, body, again, "1")); got != second || r.made() != 2 {
			t.Errorf("not the newest picture, of %d", r.made())
		}
		// Another body, or somebody else's, is not repeated.
		r.images(1, r.ada, `{"prompt":"q","size":"64x64"}`, again, "1").images(t)
		r.images(1, r.ben, body, again, "1").images(t)
		if n := r.made(); n != 4 {
			t.Errorf("%d generations, want 4", n)
		}
		// By a key of the client's.
		keyed := b64(r.images(1, r.ada, body, "Idempotency-Key", "k"))
		if got := b64(r.do("POST", imagesPath, r.ada, body, "Idempotency-Key", "k")); got != keyed || r.made() != 5 {
			t.Errorf("another picture, of %d", r.made())
		}
		if a := r.do("POST", imagesPath, r.ada, `{"prompt":"other"}`, "Idempotency-Key", "k"); a.status != 422 || a.field(t, "error.code") != "idempotency_mismatch" {
			t.Errorf("%d %s", a.status, a.body)
		}
		// What its owner deleted is not what is repeated.
		if a := r.do("DELETE", "/v1/generations", r.ada, `{"all":true}`); a.status != 202 {
			t.Fatal(a.status, a.body)
		}
		r.images(1, r.ada, body, again, "1").images(t)
		if a := r.do("POST", imagesPath, r.ada, body, "Idempotency-Key", "k"); a.status != 410 {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
}

// A request that was refused is repeated too: it gets no picture of long ago.
func TestOpenAIRetriesGetNoOldPicture(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		const body, again = `{"prompt":"p","size":"64x64"}`, "X-Stainless-Retry-Count"
		b64 := func(a answered) string { t.Helper(); return a.images(t).Data[0].B64 }
		age := func(by time.Duration) {
			t.Helper()
			ms := by.Milliseconds()
			if _, err := r.db.Exec(t.Context(), `UPDATE generations SET created_at = created_at - ?, finished_at = CASE finished_at WHEN 0 THEN 0 ELSE finished_at - ? END`, ms, ms); err != nil {
				t.Fatal(err)
			}
		}
		old := b64(r.images(1, r.ada, body))
		keyed := b64(r.images(1, r.ada, body, "Idempotency-Key", "k"))
		age(repeatedWithin + time.Minute)
		second := b64(r.images(1, r.ada, body, again, "1"))
		if second == old || r.made() != 3 {
			t.Fatalf("the picture of long ago, of %d", r.made())
		}
		// Which is the one that is repeated from now on.
		age(repeatedWithin - time.Minute)
		if got := b64(r.do("POST", imagesPath, r.ada, body, again, "2")); got != second || r.made() != 3 {
			t.Errorf("not the newest picture, of %d", r.made())
		}
		// A key of the client's names the request itself.
		if got := b64(r.do("POST", imagesPath, r.ada, body, "Idempotency-Key", "k", again, "1")); got != keyed || r.made() != 3 {
			t.Errorf("another picture than the key's, of %d", r.made())
		}
		// What takes long is waited for, however long ago it was asked for.
		done := make(chan answered, 2)
		go func() { done <- r.do("POST", imagesPath, r.ada, body) }()
		r.running(r.ada)
		age(time.Hour)
		go func() { done <- r.do("POST", imagesPath, r.ada, body, again, "1") }()
		r.pass()
		if one, other := b64(<-done), b64(<-done); one != other || r.made() != 4 {
			t.Errorf("two pictures, of %d", r.made())
		}
	})
}

// Of equal requests that are sent together some are refused: repeated, each makes
// a picture of its own, and a repetition of one that was accepted still makes none.
func TestOpenAIRefusedRequestsMakeTheirOwnPicture(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		const body, again = `{"prompt":"p","size":"64x64"}`, "X-Stainless-Retry-Count"
		b64 := func(a answered) string { t.Helper(); return a.images(t).Data[0].B64 }
		most := func(n int) {
			r.api.open.mu.Lock()
			defer r.api.open.mu.Unlock()
			r.api.open.most = n
		}
		most(1)
		done := make(chan answered, 3)
		ask := func(retry string) { done <- r.do("POST", imagesPath, r.ada, body, again, retry) }
		go ask("0")
		r.running(r.ada)
		// Two more, of which one is refused twice; and somebody who does not repeat.
		for _, retry := range []string{"0", "1", "0"} {
			if a := r.do("POST", imagesPath, r.ada, body, again, retry); a.status != 429 || a.field(t, "code") != "rate_limited" {
				t.Fatalf("%d %s", a.status, a.body)
			}
		}
		if a := r.do("POST", imagesPath, r.ada, body); a.status != 429 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		most(mostOpen)
		go ask("2")
		go ask("1")
		testenv.Eventually(t, 20*time.Second, func() bool { return r.made() == 3 })
		for range 3 {
			r.pass()
		}
		one, two, three := b64(<-done), b64(<-done), b64(<-done)
		if one == two || two == three || one == three {
			t.Error("two have the same picture")
		}
		if got := b64(r.do("POST", imagesPath, r.ada, body, again, "1")); got != one && got != two && got != three || r.made() != 3 {
			t.Errorf("another picture, of %d", r.made())
		}
	})
}

// A program whose library has given up asks anew: when that is repeated it is one picture.
func TestOpenAIWhatWasGivenUpMakesNoSecondPicture(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		const body, again = `{"prompt":"p","size":"64x64"}`, "X-Stainless-Retry-Count"
		open := func(most int) (n int) {
			r.api.open.mu.Lock()
			defer r.api.open.mu.Unlock()
			r.api.open.most = most
			for _, of := range r.api.open.open {
				n += of
			}
			return n
		}
		open(0)
		for _, retry := range []string{"0", "1", "2"} {
			if a := r.do("POST", imagesPath, r.ada, body, again, retry); a.status != 429 {
				t.Fatalf("%d %s", a.status, a.body)
			}
		}
		open(mostOpen)
		done := make(chan answered, 2)
		for i, retry := range []string{"0", "1"} {
			go func() { done <- r.do("POST", imagesPath, r.ada, body, again, retry) }()
			testenv.Eventually(t, 20*time.Second, func() bool { return open(mostOpen) == i+1 && r.made() > 0 })
		}
		r.pass()
		var got []string
		for range 2 {
			select {
			case a := <-done:
				got = append(got, a.images(t).Data[0].B64)
			case <-time.After(time.Minute):
				t.Fatalf("%d pictures are made, and one is waited for", r.made())
			}
		}
		if got[0] != got[1] || r.made() != 1 {
			t.Errorf("%d pictures", r.made())
		}
	})
}

// What was refused is not remembered for ever, nor without end.
func TestRefusalsAreForgotten(t *testing.T) {
	t.Parallel()
	c := clock.Manual(time.Date(2031, 3, 3, 12, 0, 0, 0, time.UTC))
	r := refusals{clock: c}
	r.add("a")
	r.add("a")
	c.Advance(refusedFor - time.Millisecond)
	if r.take("b") || !r.take("a") {
		t.Error("the wrong ones are remembered")
	}
	c.Advance(time.Millisecond)
	if r.take("a") {
		t.Error("it is remembered for more than its time")
	}
	for range mostRefusals + 10 {
		r.add("c")
	}
	if n := len(r.list); n != mostRefusals {
		t.Errorf("%d are remembered", n)
	}
}

// A model of whose lane no worker is says so, and its generation waits for one.
func TestOpenAIModelsThatNobodyServes(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		o, rooms := r.options, r.options.Generate.Options
		measured := jobs.NewMetrics(nil)
		bell := jobs.NewBell(o.Redis, measured)
		t.Cleanup(bell.Close)
		rooms.Queue = jobs.New(r.db, o.Clock, bell, measured, o.Log)
		lonely := rooms.Engines.Models[0]
		lonely.ID, lonely.Lane = "lonely", "nowhere"
		rooms.Engines.Models = append(slices.Clone(rooms.Engines.Models), lonely)
		o.Generate = generate.New(rooms)
		t.Cleanup(o.Generate.Close)
		r.serve(o)

		const body = `{"prompt":"p","size":"64x64","model":"lonely"}`
		if a := r.do("GET", "/v1/models/lonely", r.readOnly, ""); a.status != 200 || a.field(t, "served") != false || a.field(t, "id") != "lonely" {
			t.Errorf("%d %s", a.status, a.body)
		}
		for _, retry := range []string{"0", "1"} {
			a := r.do("POST", imagesPath, r.ada, body, "X-Stainless-Retry-Count", retry)
			if a.status != 503 || a.field(t, "error.code") != "unavailable" || a.field(t, "error.type") != "server_error" || a.Header.Get("Retry-After") != "30" || a.Header.Get("X-Should-Retry") != "" {
				t.Errorf("repeated %s times: %d %v %s", retry, a.status, a.Header, a.body)
			}
			if list := r.do("GET", "/v1/generations?status=queued", r.ada, ""); r.made() != 1 || list.field(t, "data.model") != "lonely" {
				t.Errorf("%d are made, and there waits %s", r.made(), list.body)
			}
		}
	})
}

func TestOpenAIModel(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		a := r.do("GET", "/v1/models/"+secondModel, r.readOnly, "")
		if a.status != 200 || a.field(t, "id") != secondModel || a.field(t, "object") != "model" || a.field(t, "created") != float64(0) || a.field(t, "served") != true {
			t.Errorf("%d %s", a.status, a.body)
		}
		for _, unknown := range []string{"dall-e-3", "auto", secret, "%00", "..%2f..", "a%2Fb", strings.Repeat("a", 3000)} {
			a := r.do("GET", "/v1/models/"+unknown, r.readOnly, "")
			if a.status != 404 || a.field(t, "error.type") != "invalid_request_error" || a.field(t, "error.code") != "not_found" || strings.Contains(a.body, secret) {
				t.Errorf("%.20s: %d %s", unknown, a.status, a.body)
			}
		}
		if a := r.do("GET", "/v1/models/"+secondModel, "", ""); a.status != 401 || a.field(t, "error.type") != "authentication_error" {
			t.Errorf("%d %s", a.status, a.body)
		}
		r.quiet()
	})
}

// docs/openai.md lists the errors of the route, each at its status.
func TestOpenAIsPageListsItsErrors(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/openai.md")
	if err != nil {
		t.Fatal(err)
	}
	var told, want []string
	for _, m := range regexp.MustCompile("(?m)^\\| (\\d{3}) \\| `([a-z_]+)` ").FindAllStringSubmatch(string(text), -1) {
		told = append(told, m[1]+" "+m[2])
	}
	for status, r := range bare(t, nil).spec.OpenAPI().Paths[imagesPath].Post.Responses {
		if m := r.Content[problemJSON]; m != nil {
			for code := range m.Examples {
				want = append(want, status+" "+code)
			}
		}
	}
	slices.Sort(told)
	slices.Sort(want)
	if !slices.Equal(told, want) {
		t.Errorf("it lists\n%v, and there are\n%v", told, want)
	}
}

// streamed asks for a stream, and lets the engine finish n images when progress was
// told.
func (r *rig) streamed(n int, key, body string) answered {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", r.url+imagesPath, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var text strings.Builder
	for lines := bufio.NewReader(res.Body); ; {
		line, err := lines.ReadString('\n')
		text.WriteString(line)
		if errors.Is(err, io.EOF) {
			return answered{Response: res, status: res.StatusCode, body: text.String()}
		}
		if err != nil {
			r.t.Fatalf("%v after %s", err, text.String())
		}
		if line == "event: "+progressOfImages+"\n" {
			for ; n > 0; n-- {
				r.pass()
			}
		}
	}
}

func TestOpenAIStream(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		a := r.streamed(2, r.ada, `{"prompt":"p","size":"64x64","n":2,"stream":true,"partial_images":3}`)
		if a.status != 200 || a.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("%d %v %s", a.status, a.Header, a.body)
		}
		type event struct {
			Type, Size, URL string
			B64             string `json:"b64_json"`
			CreatedAt       int64  `json:"created_at"`
			Progress        struct{ Images int }
			Error           *openAIErrorView
		}
		read := func(a answered) (list []event) {
			t.Helper()
			for block := range strings.SplitSeq(a.body, "\n\n") {
				head, data, found := strings.Cut(block, "data: ")
				if !found {
					continue
				}
				var e event
				if err := json.Unmarshal([]byte(data), &e); err != nil {
					t.Fatalf("%v in %s", err, block)
				}
				if e.Error == nil && head != "event: "+e.Type+"\n" || e.Error != nil && head != "event: error\n" {
					t.Errorf("%q is of type %s", head, e.Type)
				}
				list = append(list, e)
			}
			return list
		}
		list := read(a)
		var pictures []string
		if len(list) == 0 || list[0].Type != progressOfImages {
			t.Error("no progress is told before the pictures")
		}
		for _, e := range list {
			switch e.Type {
			case progressOfImages:
				if e.Progress.Images != 2 || len(pictures) > 0 {
					t.Errorf("%+v", e)
				}
			case completedImage:
				if file, err := base64.StdEncoding.DecodeString(e.B64); err != nil || len(file) == 0 || e.Size != "64x64" || e.CreatedAt == 0 {
					t.Errorf("%+v (%v)", e, err)
				}
				pictures = append(pictures, e.B64)
			default:
				t.Errorf("%+v", e)
			}
		}
		if len(pictures) != 2 || pictures[0] == pictures[1] {
			t.Errorf("%d pictures in %d events", len(pictures), len(list))
		}
		links := read(r.streamed(1, r.ada, `{"prompt":"p","size":"64x64","stream":true,"response_format":"url"}`))
		if last := links[len(links)-1]; last.B64 != "" || r.do("GET", last.URL, "", "").status != 200 {
			t.Errorf("%+v", last)
		}
		// Before the stream an error is an answer, and within it an event.
		if a := r.do("POST", imagesPath, r.ada, `{"prompt":" ","stream":true}`); a.status != 400 || a.field(t, "error.param") != "prompt" {
			t.Errorf("%d %s", a.status, a.body)
		}
		done := make(chan answered)
		go func() { done <- r.do("POST", imagesPath, r.ada, `{"prompt":"p","size":"64x64","stream":true}`) }()
		if a := r.do("POST", "/v1/generations/"+r.running(r.ada)+"/cancel", r.ada, ""); a.status != 200 {
			t.Fatal(a.status, a.body)
		}
		ended := read(<-done)
		if last := ended[len(ended)-1]; last.Error == nil || last.Error.Code != "generation_failed" || last.Error.Type != "server_error" {
			t.Errorf("%+v", last)
		}
	})
}

// A wait and a stream of a key that is revoked end, and send no picture.
func TestOpenAIImagesEndWithTheirKey(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		eve := r.person("eve")
		done := make(chan answered, 2)
		for _, stream := range []string{"false", "true"} {
			go func() { done <- r.do("POST", imagesPath, eve, `{"prompt":"p","size":"64x64","stream":`+stream+`}`) }()
		}
		r.running(eve)
		testenv.Eventually(t, 20e9, func() bool { return r.made() == 2 })
		r.revoke(eve)
		for range 2 {
			if a := <-done; !strings.Contains(a.body, `"authentication_error"`) || strings.Contains(a.body, "b64_json") {
				t.Errorf("%d %s", a.status, a.body)
			}
		}
	})
}

func TestFit(t *testing.T) {
	t.Parallel()
	m := generate.Model{MinSide: 256, MaxSide: 2048, SideMultiple: 16, MaxPixels: 2048 * 1024}
	for asked, want := range map[[2]int][2]int{
		{1024, 1024}: {1024, 1024}, {1792, 1024}: {1792, 1024}, {1000, 1000}: {1008, 1008}, {64, 64}: {256, 256},
		{128, 64}: {512, 256}, {4096, 4096}: {1440, 1440}, {99999, 1}: {2048, 256}, {1, 99999}: {256, 2048}, {2048, 2048}: {1440, 1440},
	} {
		w, h := fit(asked[0], asked[1], m)
		if got := [2]int{w, h}; got != want {
			t.Errorf("%v: %v, want %v", asked, got, want)
		}
	}
	// Whatever comes, the model takes it.
	for w := 1; w < 100_000; w = w*3/2 + 1 {
		for h := 1; h < 100_000; h = h*3/2 + 1 {
			x, y := fit(w, h, m)
			if x < 256 || y < 256 || x > 2048 || y > 2048 || x%16 != 0 || y%16 != 0 || x*y > m.MaxPixels {
				t.Errorf("%dx%d: %dx%d", w, h, x, y)
			}
		}
	}
}
