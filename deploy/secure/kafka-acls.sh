#!/bin/sh
# Gives each role its rights on the topics, and none beyond: once, as an administrator, after
# `featurizer topics`. Brokers want `authorizer.class.name`
# org.apache.kafka.metadata.authorizer.StandardAuthorizer and no `allow.everyone.if.no.acl.found`.
#   BOOTSTRAP=k1:9093 ADMIN=admin.properties PREFIX=fraud deploy/secure/kafka-acls.sh
# Users are called by their role, scorers have none: they speak no Kafka.
set -eu
: "${BOOTSTRAP:?HOST:PORT of a broker}" "${ADMIN:?properties of an administrator}"
PREFIX=${PREFIX:-fraud}

allow() {
    user=$1
    shift
    kafka-acls.sh --bootstrap-server "$BOOTSTRAP" --command-config "$ADMIN" --add \
        --allow-principal "User:$user" "$@"
}

topic() {
    user=$1 operations=$2 name=$3
    set --
    for operation in $(echo "$operations" | tr ',' ' '); do
        set -- "$@" --operation "$operation"
    done
    allow "$user" --topic "$PREFIX.$name" "$@"
}

topic relay Write,Describe transactions
topic relay Write,Describe feedback
topic relay Write,Describe decisions
topic relay Write,Describe labels
topic relay Write,Describe models
topic relay Write,Describe dead-letters
topic relay Write,Describe audit

topic split Read,Describe transactions
topic split Read,Describe feedback
topic split Read,Write,Describe split-progress
topic split Write,Describe entity-updates

topic fold Read,Describe entity-updates
topic fold Read,Describe transactions
topic fold Read,Describe feedback

topic stream Read,Describe payments
topic stream Read,Write,Describe stream-progress
topic stream Write,Describe transactions
topic stream Write,Describe decisions
topic stream Read,Describe entity-updates
topic stream Write,Describe dead-letters

# A person who sends letters again.
topic letters Read,Write,Describe dead-letters
topic letters Read,Write,Describe payments
topic letters Read,Write,Describe labels

# Groups, transactions and idempotent producers. Names of both begin with the prefix.
for user in split fold stream; do
    allow "$user" --group "$PREFIX" --resource-pattern-type prefixed --operation Read
done
allow stream --transactional-id "$PREFIX" --resource-pattern-type prefixed \
    --operation Write --operation Describe
for user in relay split stream letters; do
    allow "$user" --cluster --operation IdempotentWrite
done
