// Score one payment from Go, with a deadline, retries of UNAVAILABLE (AIP-194) and CANCELLED, several
// connections in turn, and a fallback.
//
//	go run . 127.0.0.1:50051
//
// Make the stubs in ./fraudv1 first, as docs/users/payment-service.md says.
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/payments/fraudv1"
)

const (
	connections = 4
	deadline    = 500 * time.Millisecond
	// A retry has the same request_id, so what was decided already is answered again.
	retryPolicy = `{"methodConfig": [{"name": [{"service": "fraud.v1.FraudService"}],
	  "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.01s", "maxBackoff": "0.1s",
	  "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]}}]}`
	scoreMethod = "/fraud.v1.FraudService/Score"
)

// Client calls a scorer over several connections: each leads to one worker of a host.
type Client struct {
	connections []*grpc.ClientConn
	turn        atomic.Uint64
}

// Open returns a client; its connections are made when they are first used.
func Open(address string) (*Client, error) {
	client := &Client{}
	for range connections {
		// Over a network: credentials.NewTLS, with a certificate of one's own.
		connection, err := grpc.NewClient(address,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultServiceConfig(retryPolicy))
		if err != nil {
			return nil, err
		}
		client.connections = append(client.connections, connection)
	}
	return client, nil
}

// Score returns the assessment, or what the payment service decides without one.
func (c *Client) Score(payment *fraudv1.Transaction) (*fraudv1.Assessment, error) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	connection := c.connections[c.turn.Add(1)%uint64(len(c.connections))]
	answer := &fraudv1.ScoreResponse{}
	err := connection.Invoke(ctx, scoreMethod, &fraudv1.ScoreRequest{Transaction: payment}, answer)
	switch status.Code(err) {
	case codes.OK:
		return answer.Assessment, nil
	case codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded, codes.Internal:
		return &fraudv1.Assessment{Outcome: fraudv1.Outcome_OUTCOME_REVIEW}, nil
	default:
		return nil, err
	}
}

func payment() *fraudv1.Transaction {
	return &fraudv1.Transaction{
		RequestId:     uuid4(),
		TransactionId: "order-" + uuid4(),
		EventTime:     timestamppb.Now(),
		CustomerId:    "customer-1",
		AmountMinor:   1250,
		CurrencyCode:  "EUR",
	}
}

func uuid4() string {
	b := make([]byte, 16)
	rand.Read(b)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func main() {
	client, err := Open(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	answer, err := client.Score(payment())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(answer.Outcome, answer.DecisionId)

	wrong := payment()
	wrong.CurrencyCode = "euro"
	_, err = client.Score(wrong)
	for _, detail := range status.Convert(err).Details() {
		switch found := detail.(type) {
		case *errdetails.ErrorInfo:
			fmt.Println(found.Reason)
		case *errdetails.BadRequest:
			fmt.Println(found.FieldViolations[0].Field)
		}
	}
}
