"""AWS's errors as messages from which the reader knows what to do.

The boto3 libraries raise about forty kinds of error for "you are not logged in"; here they become one exception with
one sentence for what happened and one for the fix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crucible.errors import CrucibleError

EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
UNKNOWN_KEY = {
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AuthFailure",
    "InvalidSignatureException",
}
DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError"}
NOT_OPTED_IN = {"OptInRequired", "RegionDisabledException"}

LOG_IN = "log in again (`aws sso login`, or new keys in AWS_ACCESS_KEY_ID/AWS_SECRET_ACCESS_KEY/AWS_SESSION_TOKEN)"


class AwsError(CrucibleError):
    """AWS refused, could not be reached, or is not set up as needed; the text says which and what to do."""


@contextmanager
def aws_errors(doing: str, region: str | None = None) -> Iterator[None]:
    """Turn whatever boto3 raises while `doing` ("reading the stack") into an `AwsError`."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise AwsError(explain(error, doing, region)) from error


def explain(error: Exception, doing: str, region: str | None = None) -> str:
    """One message for a botocore error: what was being done, what AWS answered, what to do."""
    where = f" in {region}" if region else ""
    return f"{doing}{where}: {_mend(error)}"


def _mend(error: Exception) -> str:
    from botocore import exceptions

    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return "no AWS credentials found: run `aws configure` or `aws sso login`, or set AWS_PROFILE"
    if isinstance(error, exceptions.ProfileNotFound):
        return f"{error}: name one of `aws configure list-profiles` with --profile or AWS_PROFILE"
    if isinstance(error, exceptions.NoRegionError):
        return "no region given: add --region us-east-1 (or another), or set AWS_REGION"
    sso = ("SSOTokenLoadError", "UnauthorizedSSOTokenError", "TokenRetrievalError", "CredentialRetrievalError")
    if type(error).__name__ in sso:
        return f"the login has expired ({error}): {LOG_IN}"
    if isinstance(error, exceptions.EndpointConnectionError | exceptions.ConnectTimeoutError):
        return f"{error}: check the region's name and the network"
    if isinstance(error, exceptions.ClientError):
        return _mend_answer(error.response.get("Error", {}))
    return str(error)


def _mend_answer(answer: dict[str, Any]) -> str:
    code, text = str(answer.get("Code", "")), str(answer.get("Message", "")).strip()
    if code in EXPIRED:
        return f"the credentials have expired ({code}): {LOG_IN}"
    if code in UNKNOWN_KEY:
        return f"AWS does not know these credentials ({code}): check AWS_PROFILE and the keys, or {LOG_IN}"
    if code in DENIED:
        return f"not allowed ({text or code}): ask for that permission, or assume the stack's WorkerRole"
    if code in NOT_OPTED_IN:
        return f"this account has not enabled the region ({text or code}): enable it in the AWS console, or use another"
    if code == "InsufficientCapabilitiesException":
        return f"{text}: creating roles needs iam rights"
    return f"{code}: {text}" if code else text
