"""Parts of addresses and of queries, as several routes take them."""

from typing import Annotated

from fastapi import Path, Query

from flows.gateway.schemas import MAX_ID, Dataset, UserName
from storage.names import REQUEST_ID_PATTERN

DatasetPath = Annotated[Dataset, Path(examples=["cifar10"])]
UserPath = Annotated[UserName, Path(examples=["ann@lab.example"])]
IdPath = Annotated[int, Path(ge=1, le=MAX_ID, examples=[1])]
RequestPath = Annotated[str, Path(pattern=f"^{REQUEST_ID_PATTERN}$", examples=["0123456789abcdef0123456789abcdef"])]
Limit = Annotated[int, Query(ge=1, le=1000, description="how many at most")]
After = Annotated[
    int, Query(ge=0, le=MAX_ID, description="`next` of the page before; 0: from the beginning", examples=[0])
]
