// Command goproxy is what a Go team would write first: httputil.ReverseProxy behind a handler that
// reads `model` from the body and picks the upstream. It is tuned as net/http's documents advise
// (idle connections for every client, pooled copy buffers, flushed events, no log), and it checks
// nothing else: a bound for what plain Go costs, not a product.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync"
	"time"
)

const (
	bodyBytesMax   = 64 << 20
	copyBytes      = 32 << 10
	idleConnsLimit = 4096
)

// pool hands out the buffers that ReverseProxy copies answers with.
type pool struct{ buffers sync.Pool }

func newPool() *pool {
	return &pool{sync.Pool{New: func() any { return make([]byte, copyBytes) }}}
}
func (p *pool) Get() []byte  { return p.buffers.Get().([]byte) }
func (p *pool) Put(b []byte) { p.buffers.Put(b) } //nolint:staticcheck // the interface hands a slice

// readBody reads the declared length in one piece, or an undeclared one as it comes.
func readBody(r *http.Request) ([]byte, error) {
	if r.ContentLength > bodyBytesMax {
		return nil, io.ErrShortBuffer
	}
	if r.ContentLength >= 0 {
		body := make([]byte, r.ContentLength)
		_, err := io.ReadFull(r.Body, body)
		return body, err
	}
	return io.ReadAll(io.LimitReader(r.Body, bodyBytesMax))
}

type router struct {
	upstreams map[string]*url.URL
	proxy     *httputil.ReverseProxy
}

func (h *router) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	body, err := readBody(r)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	var head struct {
		Model string `json:"model"`
	}
	if err := json.Unmarshal(body, &head); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	upstream, known := h.upstreams[head.Model]
	if !known {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	r.URL.Scheme, r.URL.Host = upstream.Scheme, upstream.Host
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	r.Header.Set("Content-Length", strconv.Itoa(len(body)))
	h.proxy.ServeHTTP(w, r)
}

func main() {
	listen := flag.String("listen", "", "address to serve")
	upstream := flag.String("upstream", "", "URL of the model server")
	model := flag.String("model", "", "model that the upstream serves")
	flag.Parse()
	target, err := url.Parse(*upstream)
	if err != nil {
		log.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(*httputil.ProxyRequest) {}, // the handler has set the target
		FlushInterval: -1,
		BufferPool:    newPool(),
		ErrorLog:      log.New(io.Discard, "", 0),
		Transport: &http.Transport{
			MaxIdleConns:        0,
			MaxIdleConnsPerHost: idleConnsLimit,
			IdleConnTimeout:     90 * time.Second,
			DisableCompression:  true,
			ReadBufferSize:      copyBytes,
			WriteBufferSize:     copyBytes,
		},
	}
	server := &http.Server{
		Addr:              *listen,
		Handler:           &router{map[string]*url.URL{*model: target}, proxy},
		ReadHeaderTimeout: 10 * time.Second,
	}
	log.Fatal(server.ListenAndServe())
}
