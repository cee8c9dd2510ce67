package pageapi

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "everpage/pageapi/pagepb/everpage/v1"
)

// Code classifies an error for clients and for the command line's exit code.
type Code = pb.Code

// The codes, see types.proto.
const (
	OK          = pb.Code_CODE_OK
	Internal    = pb.Code_CODE_INTERNAL
	Invalid     = pb.Code_CODE_INVALID
	NotFound    = pb.Code_CODE_NOT_FOUND
	OutOfWindow = pb.Code_CODE_OUT_OF_WINDOW
	Unavailable = pb.Code_CODE_UNAVAILABLE
	Corrupt     = pb.Code_CODE_CORRUPT
	WrongOwner  = pb.Code_CODE_WRONG_OWNER
	Exhausted   = pb.Code_CODE_EXHAUSTED
	MainMoved   = pb.Code_CODE_MAIN_MOVED
)

// Error is an error with its code. It reads the same on both ends of the wire.
type Error struct {
	Code Code
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an error with a code.
func Errorf(code Code, format string, args ...any) error {
	return &Error{code, fmt.Errorf(format, args...)}
}

// CodeOf is the code of an error: of the outermost Error in it, Unavailable for an expired context, else Internal.
func CodeOf(err error) Code {
	var e *Error
	switch {
	case err == nil:
		return OK
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return Unavailable
	}
	return Internal
}

func statusOf(err error) *pb.Status {
	if err == nil {
		return &pb.Status{}
	}
	return &pb.Status{Code: CodeOf(err), Message: err.Error()}
}

func errorOf(s *pb.Status) error {
	if s.GetCode() == OK {
		return nil
	}
	return &Error{s.Code, errors.New(s.Message)}
}

var grpcCodes = map[Code]codes.Code{
	Internal: codes.Internal, Invalid: codes.InvalidArgument, NotFound: codes.NotFound, OutOfWindow: codes.OutOfRange,
	Unavailable: codes.Unavailable, Corrupt: codes.DataLoss, WrongOwner: codes.FailedPrecondition, Exhausted: codes.ResourceExhausted, MainMoved: codes.Aborted,
}

// toGRPC makes a unary call's error.
func toGRPC(err error) error {
	if err == nil {
		return nil
	}
	return status.Error(grpcCodes[CodeOf(err)], err.Error())
}

// dialError is how gRPC wraps what the system said of a connection.
var dialError = regexp.MustCompile(`^connection error: desc = "(?:transport: )?(?:Error while dialing: )?(.*)"$`)

// fromGRPC turns what a call returned into an Error, naming the node that was called.
func fromGRPC(address string, err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if errors.Is(err, context.DeadlineExceeded) {
		return Errorf(Unavailable, "node %s did not answer in time", address)
	}
	if !ok {
		return Errorf(CodeOf(err), "%s: %w", address, err)
	}
	switch s.Code() {
	case codes.Unavailable:
		return Errorf(Unavailable, "node %s: %s", address, dialError.ReplaceAllString(s.Message(), "$1"))
	case codes.DeadlineExceeded, codes.Canceled:
		return Errorf(Unavailable, "node %s did not answer in time", address)
	case codes.Unimplemented:
		return Errorf(Invalid, "node %s does not know this call: %s", address, s.Message())
	}
	for code, g := range grpcCodes {
		if g == s.Code() {
			return &Error{code, errors.New(s.Message())}
		}
	}
	return Errorf(Internal, "node %s: %s", address, s.Message())
}
