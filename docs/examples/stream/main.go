// Command stream submits a prompt and tells how far it is until the picture is
// there:
//
//	ZIMAGE_KEY=zi_… go run ./docs/examples/stream "a lighthouse in a storm at night"
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"

	"zimage/client"
)

func main() {
	if err := run(context.Background(), os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, prompt string) error {
	c := client.New(cmp.Or(os.Getenv("ZIMAGE_PUBLIC_URL"), "http://127.0.0.1:8080"), os.Getenv("ZIMAGE_KEY"))
	g, err := c.CreateGeneration(ctx, client.Create{Prompt: prompt}, nil)
	if err != nil {
		return err
	}
	// Follow opens a stream that breaks again where it ended.
	return c.Follow(ctx, g.ID, func(now client.Generation) {
		fmt.Printf("%s %.0f %%\n", now.Status, now.Progress.Fraction*100)
		for _, image := range now.Images {
			fmt.Println(image.URL)
		}
	})
}
