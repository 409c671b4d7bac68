package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"zimage/internal/testenv"
)

// A Process is one of the service's, with its log in a file.
type Process struct {
	Name    string
	URL     string // of the API, for processes that serve one
	Metrics string // of /metrics and the probes

	t    testing.TB
	args []string
	env  []string
	path string
	log  string
	cmd  *exec.Cmd

	mu   sync.Mutex // receivers ask who is alive while the test starts it again
	gone <-chan struct{}
}

// Start starts the process, again after it has ended, and returns when it
// answers.
func (p *Process) Start() {
	p.t.Helper()
	p.Launch()
	p.AwaitAnswer()
}

// AwaitAnswer waits until a process that was launched answers.
func (p *Process) AwaitAnswer() {
	p.t.Helper()
	until(p.t, time.Minute, p.Name+" answers", func() bool {
		if !p.Alive() {
			p.t.Fatalf("%s ended at start with %d:\n%s", p.Name, p.ExitCode(), p.Log())
		}
		return p.answers() && (p.URL == "" || p.listens())
	})
}

// answers says that its metrics and probes are served.
func (p *Process) answers() bool {
	res, err := client.Get(p.Metrics + "/healthz")
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode == http.StatusOK
}

func (p *Process) listens() bool {
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(p.URL, "http://"), time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// Launch starts the process without waiting for it.
func (p *Process) Launch() {
	p.t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	p.cmd = exec.Command(p.path, p.args...)
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = p.env, log, log, filepath.Dir(p.log)
	gone, err := testenv.StartBound(p.cmd)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = gone
}

// Alive reports whether it has not ended.
func (p *Process) Alive() bool {
	p.mu.Lock()
	gone := p.gone
	p.mu.Unlock()
	if gone == nil {
		return false
	}
	select {
	case <-gone:
		return false
	default:
		return true
	}
}

// Signal sends a signal and does not wait.
func (p *Process) Signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
}

// Kill9 ends it at once and returns when it is gone.
func (p *Process) Kill9() {
	p.t.Helper()
	p.Signal(syscall.SIGKILL)
	p.Ended(10 * time.Second)
}

// Freeze stops it (SIGSTOP) until Thaw.
func (p *Process) Freeze() { p.t.Helper(); p.Signal(syscall.SIGSTOP) }

// Thaw lets it go on (SIGCONT).
func (p *Process) Thaw() { p.t.Helper(); p.Signal(syscall.SIGCONT) }

// Term asks it to drain and end (SIGTERM).
func (p *Process) Term() { p.t.Helper(); p.Signal(syscall.SIGTERM) }

// Interrupt is Ctrl-C (SIGINT).
func (p *Process) Interrupt() { p.t.Helper(); p.Signal(syscall.SIGINT) }

// Ended waits until the process is gone and returns its exit code, -1 when a
// signal ended it.
func (p *Process) Ended(within time.Duration) int {
	p.t.Helper()
	select {
	case <-p.gone:
	case <-time.After(within):
		p.t.Fatalf("%s has not ended within %v", p.Name, within)
	}
	return p.ExitCode()
}

// ExitCode of an ended process.
func (p *Process) ExitCode() int { return p.cmd.ProcessState.ExitCode() }

// Log is all that it wrote, over all its starts.
func (p *Process) Log() string {
	text, err := os.ReadFile(p.log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		p.t.Error(err)
	}
	return string(text)
}

// Ready is the state and the body of its /readyz.
func (p *Process) Ready() (status int, body string) {
	p.t.Helper()
	res, err := client.Get(p.Metrics + "/readyz")
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// Metric is the sum of a metric over all its labels; 0 when it is not there.
func (p *Process) Metric(name string) float64 {
	p.t.Helper()
	sum := 0.0
	lines := bufio.NewScanner(strings.NewReader(p.metricsPage()))
	for lines.Scan() {
		rest, found := strings.CutPrefix(lines.Text(), name)
		if !found || (rest[0] != ' ' && rest[0] != '{') {
			continue
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			p.t.Fatal(err)
		}
		sum += v
	}
	return sum
}

func (p *Process) metricsPage() string {
	p.t.Helper()
	res, err := client.Get(p.Metrics + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(text)
}

// client speaks to processes that come and go: no connection is used twice.
var client = &http.Client{Timeout: 75 * time.Second, Transport: newForwarder()}

// The client's addresses, which nobody else has: the one that its requests come from,
// where there is Linux, which has the whole network of loopback; and the one from which
// they say that they were forwarded.
var (
	clientIPv4 = netip.AddrFrom4([4]byte{127, 100 + rand.N[byte](150), 100 + rand.N[byte](150), 100 + rand.N[byte](150)}) //nolint:gosec // no secret
	clientIPv6 = netip.MustParseAddr(fmt.Sprintf("2001:db8::%x:%x", 0x1000+rand.N(0xefff), 0x1000+rand.N(0xefff)))        //nolint:gosec // no secret
)

type forwarder struct{ way *http.Transport }

func newForwarder() forwarder {
	d := net.Dialer{Timeout: 5 * time.Second}
	if runtime.GOOS == "linux" {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(clientIPv4, 0))
	}
	return forwarder{&http.Transport{DisableKeepAlives: true, DialContext: d.DialContext}}
}

// RoundTrip is what a proxy does.
func (f forwarder) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("X-Forwarded-For", clientIPv6.String())
	return f.way.RoundTrip(r)
}

// run runs a command to its end and returns what it wrote on stdout.
func run(ctx context.Context, cmd *exec.Cmd) (string, error) {
	var out, complaint strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaint
	gone, err := testenv.StartBound(cmd)
	if err != nil {
		return "", err
	}
	select {
	case <-gone:
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		<-gone
	}
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		return "", fmt.Errorf("%s ended with %d: %s", cmd.Path, code, complaint.String())
	}
	return out.String(), nil
}

// freeAddress is a loopback address nobody listens on, below the ports that the
// kernel gives to outgoing connections.
func freeAddress(t testing.TB) string {
	t.Helper()
	for range 100 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(15000+rand.IntN(17000))) //nolint:gosec // no secret
		l, err := net.Listen("tcp", address)
		if err == nil {
			_ = l.Close()
			return address
		}
	}
	t.Fatal("no free port")
	return ""
}
