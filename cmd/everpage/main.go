// Command everpage is the page server and everything that talks to it. This package is the only place that knows flags, environment and signals.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"everpage/pageapi"
)

// The exit codes of every command.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitOutOfWindow = 4
	exitUnreachable = 5
	exitVerify      = 6
)

// usageError is a mistake in how a command was called.
type usageError struct{ error }

// verifyError says that a verification found something.
type verifyError struct{ error }

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C kills
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	err = ended(ctx, err)
	fmt.Fprintln(os.Stderr, "everpage:", err)
	code := exitCode(err)
	if code == exitUsage {
		fmt.Fprintln(os.Stderr, "Run 'everpage --help' or 'everpage COMMAND --help' for how it is used.")
	}
	return code
}

// ended is why a command ended: a call that Ctrl-C took back looks as if no node had answered.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || pageapi.CodeOf(err) == pageapi.Unavailable) {
		return errors.New("interrupted")
	}
	return err
}

func exitCode(err error) int {
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[verifyError](err); ok {
		return exitVerify
	}
	switch pageapi.CodeOf(err) {
	case pageapi.Invalid:
		return exitUsage
	case pageapi.NotFound:
		return exitNotFound
	case pageapi.OutOfWindow:
		return exitOutOfWindow
	case pageapi.Unavailable:
		return exitUnreachable
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:   "everpage",
		Short: "Every page of your PostgreSQL, at every LSN",
		Long: `Everpage follows a running, unmodified PostgreSQL 14 to 18, keeps every version of every page, and answers any page at any LSN.
On that a stock PostgreSQL starts at any moment of the past.

Flags may also be given in the environment (--spool-keep as EVERPAGE_SPOOL_KEEP) or in a YAML file (--config).`,
		Example: `  everpage serve --data /var/lib/everpage
  everpage attach 'postgresql://replicator@db.example/postgres' --wait
  everpage page get base/5/16384 0 --lsn 0/16B3740 --format text
  everpage restore /srv/pg-yesterday --time '2026-03-01 12:00:00+00'`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return g.complete(cmd)
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	g.flags(root.PersistentFlags())
	root.AddCommand(
		newServe(g), newAttach(g), newDetach(g), newStatus(g), newInfo(g), newPage(g), newRel(g), newWAL(g), newLSN(g), newRestore(g), newCheck(g), newBackup(g), newGC(g), newVerify(g), newRetention(g), newDU(g), newBench(g), newVersion(g), newNode(g), newShard(g), newChunk(g), newCluster(g),
	)
	for _, c := range append(root.Commands(), root) {
		usageArgs(c)
	}
	return root
}

// group makes a command that only has others under it: without one of these it prints its help, with an unknown one it fails.
func group(c *cobra.Command) {
	c.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		text := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			text += fmt.Sprintf("; did you mean %q?", near[0])
		}
		return usageError{errors.New(text)}
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// usageArgs makes a wrong number of arguments a usage error in every command.
func usageArgs(c *cobra.Command) {
	if c.HasSubCommands() && !c.Runnable() {
		group(c)
	}
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{err}
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		usageArgs(sub)
	}
}
