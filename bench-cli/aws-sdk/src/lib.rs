//! The only user of aws-sdk-s3: control path and the aws-sdk transport.
