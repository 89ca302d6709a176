// Command goload is both ends of the benchmark where wrk is not enough: the model server behind
// every contender, and a client that times single requests and single events. Loopback only, and
// every run is bounded in time.
package main

import (
	"fmt"
	"os"
)

func main() {
	commands := map[string]func([]string) error{
		"upstream": serveUpstream,
		"paced":    runPaced,
		"stream":   runStream,
		"idle":     runIdle,
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: goload upstream|paced|stream|idle [flags]")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "goload:", err)
		os.Exit(1)
	}
}
