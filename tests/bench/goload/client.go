package main

// The client: single requests at a fixed rate, paced streams, idle streams. It prints `begin` when
// its load is steady. Whoever started it then takes its window and writes the window's ends to
// stdin, as two Unix times in nanoseconds; the answer is one JSON object about what arrived between
// them. So a window is exact even where this process or the other had to wait for a CPU.

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

const timeout = 60 * time.Second

// options are the flags that the three loads share.
type options struct {
	target      string
	model       string
	connections int
	settle      time.Duration
	rate        float64
}

func parse(name string, args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.StringVar(&o.target, "target", "", "address of the contender")
	flags.StringVar(&o.model, "model", "bench/model", "model to ask for")
	flags.IntVar(&o.connections, "connections", 64, "connections, each with one request at a time")
	flags.DurationVar(&o.settle, "settle", 500*time.Millisecond, "time before the window")
	flags.Float64Var(&o.rate, "rate", 1000, "requests a second over all connections (paced)")
	return o, flags.Parse(args)
}

// request is 188 bytes of JSON, as wrk sends it, or the same with fields for a stream.
func (o options) request(extra string) []byte {
	const wanted = 188
	const form = `{"messages":[{"role":"user","content":"%s"}],"model":"%s","max_tokens":64%s}`
	padding := max(0, wanted-len(form)+len("%s%s%s")-len(o.model)-len(extra))
	body := fmt.Sprintf(form, bytes.Repeat([]byte("x"), padding), o.model, extra)
	return fmt.Appendf(nil, "POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n"+
		"Content-Length: %d\r\n\r\n%s", o.target, len(body), body)
}

func (o options) dial() (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", o.target, timeout)
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(timeout))
	}
	return conn, err
}

// sample is one answer or event: when it arrived, and how long it took.
type sample struct {
	at   time.Time
	took time.Duration
}

// samples are those of all connections.
type samples struct {
	mutex  sync.Mutex
	taken  []sample
	failed int
	ended  bool
}

func (s *samples) add(at time.Time, took time.Duration) {
	s.mutex.Lock()
	s.taken = append(s.taken, sample{at, took})
	s.mutex.Unlock()
}

func (s *samples) fail() {
	s.mutex.Lock()
	if !s.ended {
		s.failed++
	}
	s.mutex.Unlock()
}

// announce prints `begin`, waits for a window and prints what arrived in it.
func (s *samples) announce(settle time.Duration) error {
	time.Sleep(settle)
	fmt.Println("begin")
	var begin, end int64
	if _, err := fmt.Scan(&begin, &end); err != nil {
		return err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.ended = true
	var took []time.Duration
	for _, each := range s.taken {
		if at := each.at.UnixNano(); begin <= at && at < end {
			took = append(took, each.took)
		}
	}
	if len(took) == 0 {
		return fmt.Errorf("nothing was answered in the window (%d failed)", s.failed)
	}
	slices.Sort(took)
	return json.NewEncoder(os.Stdout).Encode(map[string]float64{
		"count":  float64(len(took)),
		"failed": float64(s.failed),
		"p50_us": quantile(took, 0.50),
		"p99_us": quantile(took, 0.99),
	})
}

func quantile(sorted []time.Duration, q float64) float64 {
	return float64(sorted[int(q*float64(len(sorted)-1))].Nanoseconds()) / 1e3
}

// runPaced sends requests at a fixed rate, each connection at its own phase, and times each from
// the write of the request to the last byte of the answer.
func runPaced(args []string) error {
	o, err := parse("paced", args)
	if err != nil {
		return err
	}
	period := time.Duration(float64(o.connections) / o.rate * float64(time.Second))
	measured := &samples{}
	message := o.request("")
	for i := range o.connections {
		conn, err := o.dial()
		if err != nil {
			return err
		}
		go paced(conn, message, measured, time.Now().Add(period*time.Duration(i)/time.Duration(o.connections)), period)
	}
	return measured.announce(o.settle)
}

func paced(conn net.Conn, message []byte, measured *samples, next time.Time, period time.Duration) {
	defer conn.Close()
	reader := bufio.NewReader(conn)
	for {
		time.Sleep(time.Until(next))
		next = next.Add(period)
		sent := time.Now()
		if err := exchange(conn, reader, message); err != nil {
			measured.fail()
			return
		}
		now := time.Now()
		measured.add(now, now.Sub(sent))
	}
}

func exchange(conn net.Conn, reader *bufio.Reader, message []byte) error {
	if _, err := conn.Write(message); err != nil {
		return err
	}
	answer, err := http.ReadResponse(reader, nil)
	if err != nil {
		return err
	}
	if _, err = io.Copy(io.Discard, answer.Body); err == nil && answer.StatusCode != http.StatusOK {
		err = errors.New(answer.Status)
	}
	return err
}

// runStream holds paced streams and times each event from the upstream's stamp to its arrival.
func runStream(args []string) error {
	o, err := parse("stream", args)
	if err != nil {
		return err
	}
	measured := &samples{}
	for range o.connections {
		lines, err := o.openStream("")
		if err != nil {
			return err
		}
		go func() {
			for lines.Scan() {
				now := time.Now()
				if sent, ok := stamp(lines.Bytes()); ok {
					measured.add(now, time.Duration(now.UnixNano()-sent))
				}
			}
			measured.fail()
		}()
	}
	return measured.announce(o.settle)
}

// openStream asks for a stream and returns its lines, past the response's head.
func (o options) openStream(extra string) (*bufio.Scanner, error) {
	conn, err := o.dial()
	if err != nil {
		return nil, err
	}
	if _, err = conn.Write(o.request(`,"stream":true` + extra)); err != nil {
		return nil, err
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return nil, errors.New(answer.Status)
	}
	return bufio.NewScanner(answer.Body), nil
}

// stamp returns the nanoseconds that the upstream wrote into the event.
func stamp(line []byte) (int64, bool) {
	const mark, digits = `"t=`, 19
	at := bytes.Index(line, []byte(mark))
	if at < 0 || len(line) < at+len(mark)+digits {
		return 0, false
	}
	value, err := strconv.ParseInt(string(line[at+len(mark):at+len(mark)+digits]), 10, 64)
	return value, err == nil
}

// runIdle opens streams that fall silent after their first event, and holds them until stdin ends.
func runIdle(args []string) error {
	o, err := parse("idle", args)
	if err != nil {
		return err
	}
	held := make([]*bufio.Scanner, o.connections)
	for i := range held {
		if held[i], err = o.openStream(`,"user":"idle"`); err != nil {
			return err
		}
		if !held[i].Scan() {
			return fmt.Errorf("stream %d of %d ended before its first event", i, len(held))
		}
	}
	fmt.Println("begin")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
