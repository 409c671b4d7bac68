// Command poll submits a prompt, asks until it is final, and saves the picture:
//
//	ZIMAGE_KEY=zi_… go run ./docs/examples/poll "a lighthouse in a storm at night" out.png
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log"
	"os"

	"zimage/client"
)

func main() {
	if err := run(context.Background(), os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, prompt, file string) error {
	c := client.New(cmp.Or(os.Getenv("ZIMAGE_PUBLIC_URL"), "http://127.0.0.1:8080"), os.Getenv("ZIMAGE_KEY"))

	// Sent again after a lost answer, the same key makes no second picture.
	once := rand.Text()
	g, err := c.CreateGeneration(ctx, client.Create{Prompt: prompt}, &client.CreateGenerationParams{IdempotencyKey: &once})
	if err != nil {
		return err
	}
	// Each question waits up to half a minute at the service.
	wait := "wait=30"
	for !g.Status.Final() {
		if g, err = c.GetGeneration(ctx, g.ID, &client.GetGenerationParams{Prefer: &wait}); err != nil {
			return err
		}
	}
	switch {
	case g.Error != nil:
		return fmt.Errorf("%s (%s)", g.Error.Message, g.Error.Code)
	case g.Status != client.GenerationStatusSucceeded:
		return fmt.Errorf("it is %s", g.Status)
	}
	picture, err := c.GetImageContent(ctx, g.Images[0].ID, nil)
	if err != nil {
		return err
	}
	defer func() { _ = picture.Body.Close() }()
	content, err := io.ReadAll(picture.Body)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return err
	}
	fmt.Printf("%s  seed %d\n", file, g.Seed)
	return nil
}
