package main

// The model server: raw HTTP/1.1 over net.Conn, so that it takes less of its CPU than any proxy
// takes of its own. It reads every request to its end, answers 600 bytes of JSON, or a stream of
// paced events, each stamped with the time it was written.

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	answerBytes   = 600
	keptBodyBytes = 4 << 10
	streamMax     = 120 * time.Second
)

type upstream struct {
	pace     time.Duration
	answer   []byte
	answered *atomic.Int64 // POST requests answered in full, in a file that others map
}

func serveUpstream(args []string) error {
	flags := flag.NewFlagSet("upstream", flag.ContinueOnError)
	listen := flags.String("listen", "", "address to serve")
	pace := flags.Duration("pace", 10*time.Millisecond, "time between two events of a stream")
	counter := flags.String("counter", "", "file of 8 bytes that counts the answers")
	if err := flags.Parse(args); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	answered, err := mapCounter(*counter)
	if err != nil {
		return err
	}
	server := &upstream{*pace, jsonResponse(completion()), answered}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go server.serve(conn)
	}
}

// mapCounter maps the first 8 bytes of a file, so that reading the count takes no time of ours.
func mapCounter(path string) (*atomic.Int64, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	shared := syscall.PROT_READ | syscall.PROT_WRITE
	data, err := syscall.Mmap(int(file.Fd()), 0, 8, shared, syscall.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*atomic.Int64)(unsafe.Pointer(&data[0])), nil
}

// completion is a chat completion of exactly answerBytes bytes.
func completion() string {
	const form = `{"id":"chatcmpl-0123456789","object":"chat.completion","created":1700000000,` +
		`"model":"bench/model","choices":[{"index":0,"message":{"role":"assistant","content":"%s"},` +
		`"finish_reason":"stop"}],"usage":{"prompt_tokens":31,"completion_tokens":64,"total_tokens":95}}`
	return fmt.Sprintf(form, strings.Repeat("a", answerBytes-len(form)+len("%s")))
}

func jsonResponse(body string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		len(body), body)
}

func (u *upstream) serve(conn net.Conn) {
	defer conn.Close()
	reader := bufio.NewReaderSize(conn, 64<<10)
	for {
		request, err := readRequest(reader)
		if err != nil {
			return
		}
		switch {
		case request.method != "POST":
			_, err = conn.Write(jsonResponse(`{"object":"list","data":[{"id":"bench/model","object":"model"}]}`))
		case bytes.Contains(request.body, []byte(`"stream":true`)):
			u.stream(conn, reader, bytes.Contains(request.body, []byte(`"user":"idle"`)))
			return
		default:
			if _, err = conn.Write(u.answer); err == nil {
				u.answered.Add(1)
			}
		}
		if err != nil {
			return
		}
	}
}

// stream writes one event each pace from a random phase on; an idle stream stops after the first.
func (u *upstream) stream(conn net.Conn, reader *bufio.Reader, idle bool) {
	const head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n" +
		"Transfer-Encoding: chunked\r\n\r\n"
	time.Sleep(time.Duration(rand.Int64N(int64(u.pace))))
	if _, err := conn.Write(appendEvent([]byte(head))); err != nil {
		return
	}
	if idle {
		_ = conn.SetReadDeadline(time.Now().Add(streamMax))
		_, _ = reader.ReadByte()
		return
	}
	ticker := time.NewTicker(u.pace)
	defer ticker.Stop()
	buffer := make([]byte, 0, 512)
	for end := time.Now().Add(streamMax); time.Now().Before(end); {
		<-ticker.C
		if _, err := conn.Write(appendEvent(buffer)); err != nil {
			return
		}
	}
}

// appendEvent appends one chunk with one event; the time stands where a token's text would, so
// that a router which parses and writes events anew keeps it.
func appendEvent(buffer []byte) []byte {
	const form = `data: {"id":"chatcmpl-0123456789","object":"chat.completion.chunk","created":1700000000,` +
		`"model":"bench/model","choices":[{"index":0,"delta":{"content":"t=%019d"},"finish_reason":null}]}` + "\n\n"
	const size = len(form) - len("%019d") + 19
	return fmt.Appendf(buffer, "%x\r\n"+form+"\r\n", size, time.Now().UnixNano())
}

type request struct {
	method string
	body   []byte // whole up to keptBodyBytes, else empty
}

func readRequest(reader *bufio.Reader) (request, error) {
	line, err := reader.ReadSlice('\n')
	if err != nil {
		return request{}, err
	}
	parts := strings.Fields(string(line))
	if len(parts) != 3 {
		return request{}, errors.New("bad request line")
	}
	found := request{method: parts[0]}
	length := 0
	for {
		line, err = reader.ReadSlice('\n')
		if err != nil {
			return found, err
		}
		if len(line) <= 2 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return found, err
			}
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			return found, errors.New("only declared lengths are read here")
		}
	}
	if length > keptBodyBytes {
		_, err = reader.Discard(length)
		return found, err
	}
	found.body = make([]byte, length)
	_, err = io.ReadFull(reader, found.body)
	return found, err
}
