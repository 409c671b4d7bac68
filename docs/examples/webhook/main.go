// Command webhook receives webhooks, verifies them, and prints what happened:
//
//	WEBHOOK_SECRET=whsec_… go run ./docs/examples/webhook 9000
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

func main() {
	if err := run(os.Getenv("WEBHOOK_SECRET"), os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func run(secret, port string) error {
	if secret == "" { // with which the library would verify what anybody signs
		return errors.New("WEBHOOK_SECRET is not set")
	}
	webhook, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return err
	}
	fmt.Printf("listening on http://%s\n", l.Addr())
	server := &http.Server{Handler: &receiver{webhook: webhook, seen: map[string]bool{}}, ReadTimeout: 10 * time.Second}
	return server.Serve(l)
}

type receiver struct {
	webhook *standardwebhooks.Webhook
	mu      sync.Mutex
	seen    map[string]bool // in your database, in earnest
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, 1<<20))
	if err != nil {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	}
	// The bytes as they came, before anything reads them.
	if r.webhook.Verify(body, req.Header) != nil {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	var event struct {
		Type string
		Data struct{ ID string }
	}
	if json.Unmarshal(body, &event) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	// At least once: the same delivery may come again, under the same id.
	id := req.Header.Get("webhook-id")
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.seen[id] {
		r.seen[id] = true
		fmt.Println(event.Type, event.Data.ID)
	}
	w.WriteHeader(http.StatusNoContent) // at once; what takes long comes after the answer
}
