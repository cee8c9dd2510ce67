package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// S3Options describe a bucket. Only Bucket must be given; keys come from where the AWS tools look for them: environment, shared files, roles.
type S3Options struct {
	Bucket    string
	Prefix    string // of all names, "" or ending with a slash
	Endpoint  string // URL of a service that isn't AWS
	Region    string // us-east-1 where nothing else names one
	PathStyle bool   // the bucket in the path instead of in the host's name
	Profile   string // of the shared files
	CA        string // file with certificates to trust beside the system's

	StorageClass string
	SSE          string // AES256 or aws:kms
	SSEKey       string // KMS key id

	Attempts int           // of one request, 5
	Backoff  time.Duration // at most, between two of them, 5 s
	Stall    time.Duration // for which a body may bring nothing until it is given up, 60 s
	PartSize int64         // bodies above it go in parts, 32 MiB
}

// S3 is a store in a bucket.
type S3 struct {
	opt    S3Options
	client *s3.Client
}

const minPart = 5 << 20 // what S3 takes

// OpenS3 makes a client. It asks the service nothing yet.
func OpenS3(ctx context.Context, opt S3Options) (*S3, error) {
	if opt.Bucket == "" {
		return nil, errors.New("store: the bucket is missing: want s3://BUCKET/PREFIX")
	}
	if opt.PartSize == 0 {
		opt.PartSize = 32 << 20
	}
	if opt.PartSize < minPart {
		return nil, fmt.Errorf("store: parts of %d bytes: S3 wants at least %d", opt.PartSize, minPart)
	}
	if opt.Attempts == 0 {
		opt.Attempts = 5
	}
	if opt.Backoff == 0 {
		opt.Backoff = 5 * time.Second
	}
	if opt.Stall == 0 {
		opt.Stall = 60 * time.Second
	}
	client, err := newClient(opt.CA)
	if err != nil {
		return nil, err
	}
	load := []func(*config.LoadOptions) error{
		config.WithHTTPClient(client),
		config.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) {
				o.MaxAttempts, o.MaxBackoff = opt.Attempts, opt.Backoff
				// No quota of retries over all requests: a store that is down for a minute must not make the minute after fail too.
				o.RateLimiter = unlimited{}
			})
		}),
	}
	if opt.Region != "" {
		load = append(load, config.WithRegion(opt.Region))
	}
	if opt.Profile != "" {
		load = append(load, config.WithSharedConfigProfile(opt.Profile))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("store: configuration of S3: %w", err)
	}
	if cfg.Region == "" {
		cfg.Region = "us-east-1"
	}
	service := s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.UsePathStyle = opt.PathStyle
		if opt.Endpoint != "" {
			o.BaseEndpoint = aws.String(opt.Endpoint)
		}
		// We send and check our own where it counts; services that don't know a checksum must not fail for it.
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		o.DisableLogOutputChecksumValidationSkipped = true
	})
	return &S3{opt: opt, client: service}, nil
}

type unlimited struct{}

func (unlimited) GetToken(context.Context, uint) (func() error, error) {
	return func() error { return nil }, nil
}
func (unlimited) AddTokens(uint) error { return nil }

// bounds limit how long a silent service is waited for, not how long a large body takes.
func bounds(t *http.Transport) {
	t.DialContext = (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	t.TLSHandshakeTimeout = 10 * time.Second
	t.ResponseHeaderTimeout = 60 * time.Second
	t.MaxIdleConnsPerHost = 32
	t.DisableCompression = true
}

// newClient makes a client whose transport others can add to: AWS_CA_BUNDLE does.
func newClient(ca string) (*awshttp.BuildableClient, error) {
	c := awshttp.NewBuildableClient().WithTransportOptions(bounds)
	if ca == "" {
		return c, nil
	}
	pool, err := readCA(ca)
	if err != nil {
		return nil, err
	}
	return c.WithTransportOptions(func(t *http.Transport) { t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12} }), nil
}

// readCA reads certificates to trust, beside the system's own.
func readCA(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("store: certificates: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("store: %s holds no certificate in PEM form", path)
	}
	return pool, nil
}

func (s *S3) String() string { return "s3://" + s.opt.Bucket + "/" + s.opt.Prefix }

func (s *S3) key(name string) *string { return aws.String(s.opt.Prefix + name) }

func s3Error(op, name string, err error) error {
	if err == nil {
		return nil
	}
	var ours *Error
	if errors.As(err, &ours) {
		return err
	}
	e := &Error{Op: op, Name: name, Err: err}
	var api smithy.APIError
	code := ""
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	status := 0
	var response interface{ HTTPStatusCode() int }
	if errors.As(err, &response) {
		status = response.HTTPStatusCode()
	}
	switch {
	case errors.Is(err, ErrName):
		e.Kind = ErrName
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
	case code == "NoSuchKey" || code == "NotFound" || status == http.StatusNotFound && code != "NoSuchBucket":
		e.Kind = ErrNotExist
	case code == "PreconditionFailed" || status == http.StatusPreconditionFailed:
		e.Kind = ErrExists
	case code == "SlowDown" || code == "Throttling" || code == "RequestLimitExceeded" || status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests:
		e.Kind = ErrThrottled
	case status == http.StatusForbidden || status == http.StatusUnauthorized:
		e.Kind = ErrAuth
	case code == "BadDigest" || code == "InvalidDigest" || code == "XAmzContentChecksumMismatch" || code == "XAmzContentSHA256Mismatch":
		e.Kind = ErrUnavailable // what was sent did not arrive as it was: sending it again mends that
	default:
		e.Kind = ErrUnavailable
	}
	return e
}

// Put implements Store. The service checks the CRC-32C of what it received.
func (s *S3) Put(ctx context.Context, name string, body Body) error {
	if err := CheckName(name); err != nil {
		return s3Error("put", name, err)
	}
	if body.Size() > s.opt.PartSize {
		return s3Error("put", name, s.putParts(ctx, name, body))
	}
	crc, err := sum(body, 0, body.Size())
	if err != nil {
		return &Error{Op: "put", Name: name, Err: err}
	}
	_, err = s.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &s.opt.Bucket, Key: s.key(name), Body: io.NewSectionReader(body, 0, body.Size()), ContentLength: aws.Int64(body.Size()),
		ChecksumCRC32C: checksum(crc), IfNoneMatch: aws.String("*"),
		StorageClass: types.StorageClass(s.opt.StorageClass), ServerSideEncryption: types.ServerSideEncryption(s.opt.SSE), SSEKMSKeyId: optional(s.opt.SSEKey),
	})
	return s3Error("put", name, err)
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func checksum(crc uint32) *string {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], crc)
	return aws.String(base64.StdEncoding.EncodeToString(b[:]))
}

// putParts uploads a large body. Parts of an upload that fails are removed, so far as the service can be reached.
func (s *S3) putParts(ctx context.Context, name string, body Body) (err error) {
	// Sending all of it to learn at its end that the name is taken would be a waste.
	if _, err := s.Stat(ctx, name); err == nil {
		return &Error{Op: "put", Name: name, Kind: ErrExists}
	} else if !errors.Is(err, ErrNotExist) {
		return err
	}
	up, err := s.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &s.opt.Bucket, Key: s.key(name), ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c,
		StorageClass: types.StorageClass(s.opt.StorageClass), ServerSideEncryption: types.ServerSideEncryption(s.opt.SSE), SSEKMSKeyId: optional(s.opt.SSEKey),
	})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			abort, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			_, _ = s.client.AbortMultipartUpload(abort, &s3.AbortMultipartUploadInput{Bucket: &s.opt.Bucket, Key: s.key(name), UploadId: up.UploadId})
		}
	}()
	// S3 takes 10,000 parts.
	part := max(s.opt.PartSize, (body.Size()+9999)/10000)
	var done []types.CompletedPart
	for at, n := int64(0), int32(1); at < body.Size(); at, n = at+part, n+1 {
		length := min(part, body.Size()-at)
		crc, err := sum(body, at, length)
		if err != nil {
			return err
		}
		out, err := s.client.UploadPart(ctx, &s3.UploadPartInput{
			Bucket: &s.opt.Bucket, Key: s.key(name), UploadId: up.UploadId, PartNumber: aws.Int32(n), Body: io.NewSectionReader(body, at, length),
			ContentLength: aws.Int64(length), ChecksumCRC32C: checksum(crc),
		})
		if err != nil {
			return err
		}
		done = append(done, types.CompletedPart{PartNumber: aws.Int32(n), ETag: out.ETag, ChecksumCRC32C: checksum(crc)})
	}
	_, err = s.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &s.opt.Bucket, Key: s.key(name), UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: done}, IfNoneMatch: aws.String("*"),
	})
	return err
}

// Get implements Store.
func (s *S3) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := CheckName(name); err != nil {
		return nil, s3Error("get", name, err)
	}
	if err := checkRange(offset, length); err != nil {
		return nil, &Error{Op: "get", Name: name, Err: err}
	}
	in := &s3.GetObjectInput{Bucket: &s.opt.Bucket, Key: s.key(name)}
	switch {
	case length > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	case offset > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", offset))
	}
	// A body that stops coming is given up, so that whoever reads can begin anew: the connection alone would be waited for without end.
	ctx, cancel := context.WithCancelCause(ctx)
	out, err := s.client.GetObject(ctx, in)
	if err != nil {
		cancel(nil)
		var api smithy.APIError
		if errors.As(err, &api) && api.ErrorCode() == "InvalidRange" {
			return nil, &Error{Op: "get", Name: name, Kind: ErrTruncated, Err: fmt.Errorf("it has no byte %d", offset)}
		}
		return nil, s3Error("get", name, err)
	}
	if in.Range != nil && !strings.HasPrefix(aws.ToString(out.ContentRange), fmt.Sprintf("bytes %d-", offset)) {
		cancel(nil)
		out.Body.Close()
		return nil, &Error{Op: "get", Name: name, Kind: ErrUnavailable, Err: fmt.Errorf("the service answered the range %q with %q", *in.Range, aws.ToString(out.ContentRange))}
	}
	if length < 0 && out.ContentLength != nil {
		length = *out.ContentLength
	}
	body := &guarded{ReadCloser: out.Body, stall: s.opt.Stall, cancel: cancel}
	return &exactly{ReadCloser: body, name: name, length: length, wrap: func(err error) error {
		if context.Cause(ctx) == errStalled {
			return &Error{Op: "get", Name: name, Kind: ErrUnavailable, Err: errStalled}
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return &Error{Op: "get", Name: name, Kind: ErrTruncated, Err: err}
		}
		return s3Error("get", name, err)
	}}, nil
}

var errStalled = errors.New("the service sends nothing any more")

// guarded is a body of which each read has a bounded time.
type guarded struct {
	io.ReadCloser
	stall  time.Duration
	cancel context.CancelCauseFunc
}

func (g *guarded) Read(p []byte) (int, error) {
	t := time.AfterFunc(g.stall, func() { g.cancel(errStalled) })
	defer t.Stop()
	return g.ReadCloser.Read(p)
}

func (g *guarded) Close() error {
	g.cancel(nil)
	return g.ReadCloser.Close()
}

// Stat implements Store.
func (s *S3) Stat(ctx context.Context, name string) (Info, error) {
	if err := CheckName(name); err != nil {
		return Info{}, s3Error("stat", name, err)
	}
	out, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.opt.Bucket, Key: s.key(name)})
	if err != nil {
		return Info{}, s3Error("stat", name, err)
	}
	return Info{Name: name, Size: aws.ToInt64(out.ContentLength), Modified: aws.ToTime(out.LastModified)}, nil
}

// Delete implements Store.
func (s *S3) Delete(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return s3Error("delete", name, err)
	}
	_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.opt.Bucket, Key: s.key(name)})
	if err = s3Error("delete", name, err); errors.Is(err, ErrNotExist) {
		return nil
	}
	return err
}

// List implements Store.
func (s *S3) List(ctx context.Context, prefix string, fn func(Info) error) error {
	pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{Bucket: &s.opt.Bucket, Prefix: s.key(prefix)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		// The library makes requests again that are refused or get lost, but not those whose answer breaks off.
		for try := 1; errors.As(err, new(*smithy.DeserializationError)) && try < s.opt.Attempts && ctx.Err() == nil; try++ {
			page, err = pages.NextPage(ctx)
		}
		if err != nil {
			return s3Error("list", prefix, err)
		}
		for _, o := range page.Contents {
			name := strings.TrimPrefix(aws.ToString(o.Key), s.opt.Prefix)
			if strings.HasSuffix(name, "/") {
				continue // a directory's marker
			}
			if err := fn(Info{Name: name, Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)}); err != nil {
				return err
			}
		}
	}
	return nil
}
